"""The tables and figures of many runs: the grid, its jobs, what it draws, and the baselines beside CrossHAR."""
