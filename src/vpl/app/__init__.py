"""The page on which people look at a run and decide: a small server for one machine, and what the page asks of it."""
