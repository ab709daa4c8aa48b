"""Import the corpora: a validated manifest and Parquet shards.

python jobs/prepare.py EXPERIMENT [--set dotted.key=value ...]
"""

from lakd_ray.__main__ import run_job

if __name__ == "__main__":
    run_job("prepare")
