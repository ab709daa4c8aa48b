"""Run the complete grid of an experiment: every fold, seed and variant, and one table over them.

python jobs/run_grid.py EXPERIMENT [--dry-run] [--throughput R] [--set dotted.key=value ...]
"""

from lakd_ray.__main__ import run_job

if __name__ == "__main__":
    run_job("run-grid")
