"""Run all stages of an experiment in order.

python jobs/pipeline.py EXPERIMENT [--set dotted.key=value ...]
"""

from lakd_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("pipeline")
