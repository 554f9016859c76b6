"""The page on which people try values, look at a run and decide: a small server for one machine.

trial ──> tryout ─┬─> server      Try: a photograph under a CLIP, its label maps under any values, values for a run
          room ───┘               Review: a run's photographs, worst first, and what is decided on them
"""
