"""Train the students: ft, kd and mtkd.

python jobs/distill.py EXPERIMENT [--set dotted.key=value ...]
"""

from lakd_ray.cli.main import run_job

if __name__ == "__main__":
    run_job("distill")
