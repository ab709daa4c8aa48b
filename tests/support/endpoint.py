"""Serve a checkpoint in a small cluster until the standard input closes; the tests run this in a separate process.

Prints the URL, and `stopped` at the end.
"""

import json
import os
import sys

import ray
from ray import serve

from lakd_ray.config import Experiment
from lakd_ray.serve.deploy import start, stop


def start_cluster() -> None:
    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)


def main(checkpoint: str, settings: str) -> None:
    recipe = {"model": {"pretrained": "unused"}}
    config = Experiment.model_validate(
        {
            "name": "served",
            "languages": ["en", "de"],
            "corpora": [{"name": "unused", "root": "unused"}],
            "teacher": recipe,
            "student": recipe,
            "serve": {"port": 0, "max_upload_mb": 1, "max_seconds": 10, **json.loads(settings)},
        }
    )
    start_cluster()
    if keys := os.environ.get("LAKD_TEST_KEYS"):  # in the driver only: the processes of the cluster do not have them
        os.environ["LAKD_API_KEYS"] = keys
    print(start(config, checkpoint), flush=True)
    sys.stdin.read()
    stop(before_cluster_shutdown=True)
    ray.shutdown()
    start_cluster()  # a second cluster in the same process has no connection to the first
    assert not serve.status().proxies
    ray.shutdown()
    print("stopped", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
