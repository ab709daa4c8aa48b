"""Predict the emotions of all recordings in a folder, bucket or manifest, as Parquet.

python jobs/predict_batch.py INPUT OUT --model FOLDER [--workers N] [--cpus N] [--gpus FRACTION] [--language CODE] ...
"""

from lakd_ray.__main__ import run_job

if __name__ == "__main__":
    run_job("predict-batch")
