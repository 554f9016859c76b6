"""Ways out: a run's masks and network in the formats of other tools."""
