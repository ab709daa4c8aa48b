"""Search the settings of a student on the development set.

python jobs/tune.py EXPERIMENT [--set dotted.key=value ...]
"""

from lakd_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("tune")
