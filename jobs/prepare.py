"""Corpora to validated manifest and Parquet shards.

python jobs/prepare.py jobs/experiments/NAME.yaml [--set dotted.key=value ...]
"""

from lakd_ray.cli import job

if __name__ == "__main__":
    job("prepare")
