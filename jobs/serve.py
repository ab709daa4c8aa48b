"""Serve the best student over HTTP until interrupted.

python jobs/serve.py EXPERIMENT [--set dotted.key=value ...]
"""

from lakd_ray.__main__ import run_job

if __name__ == "__main__":
    run_job("serve")
