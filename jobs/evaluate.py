"""Predict every test utterance with every model.

python jobs/evaluate.py EXPERIMENT [--set dotted.key=value ...]
"""

from lakd_ray.__main__ import run_job

if __name__ == "__main__":
    run_job("evaluate")
