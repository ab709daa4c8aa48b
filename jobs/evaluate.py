"""Predict every test utterance with every model.

python jobs/evaluate.py EXPERIMENT [--set dotted.key=value ...]
"""

from lakd_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("evaluate")
