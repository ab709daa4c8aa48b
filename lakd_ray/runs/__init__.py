"""Training runs: the graph of runs, their state on storage, and records of finished work."""
