"""The whole grid of an experiment: every fold, seed and variant, each run once, and one table over them.

python jobs/reproduce.py EXPERIMENT [--dry-run] [--rate R] [--set dotted.key=value ...]
"""

from lakd_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("reproduce")
