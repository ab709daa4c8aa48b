"""Tune a student's hyperparameters on the dev split.

python jobs/tune.py EXPERIMENT [--set dotted.key=value ...]
"""

from lakd_ray.__main__ import run_job

if __name__ == "__main__":
    run_job("tune")
