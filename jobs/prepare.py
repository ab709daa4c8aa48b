"""Import the corpora: a validated manifest and Parquet shards.

python jobs/prepare.py EXPERIMENT [--set dotted.key=value ...]
"""

from lakd_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("prepare")
