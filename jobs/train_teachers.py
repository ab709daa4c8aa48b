"""Fine-tune one teacher per language.

python jobs/train_teachers.py EXPERIMENT [--set dotted.key=value ...]
"""

from lakd_ray.__main__ import run_job

if __name__ == "__main__":
    run_job("train-teachers")
