"""Run all stages of an experiment in order.

python jobs/pipeline.py EXPERIMENT [--set dotted.key=value ...]
"""

from lakd_ray.__main__ import run_job

if __name__ == "__main__":
    run_job("pipeline")
