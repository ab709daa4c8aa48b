"""A frozen worker is replaced, and jobs that do not fit into the cluster at the same time train one after the other."""

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.chaos import SMALL, Runs, find_workers, marked_environment, small_cluster

from lakd_ray.config import load_config
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.runs.state import RunState

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3000)]

TIMEOUT_S = 30
TRAIN = f"train: {{{{workers: 2, checkpoint_steps: 1, collective_timeout_s: {TIMEOUT_S}}}}}"
TWO_WORKERS = f"stages: [prepare, teachers]\n{SMALL}{TRAIN}\n"
ONE_WORKER = f"stages: [prepare, teachers]\n{SMALL}"
SLACK_S = float(os.environ.get("LAKD_TEST_SLACK_S", "120"))  # for a machine that runs other tests


def progress(folder: str) -> tuple[int, int]:
    latest = RunState.read(folder).latest
    return latest.epochs_done, latest.batches_done


def test_a_frozen_worker_is_replaced(tmp_path: Path) -> None:
    environment = marked_environment(tmp_path)
    with closing(Runs(tmp_path, TWO_WORKERS, environment=environment, epochs=400)) as runs:
        config = load_config(runs.experiment("frozen"))
        folder = build_run_graph(config).teachers[0].folder(config)
        process = runs.start("frozen")
        runs.wait(process, lambda: progress(folder) >= (1, 0))
        workers = find_workers(str(tmp_path), "RayTrainWorker")
        assert len(workers) == 2
        workers[-1].send_signal(signal.SIGSTOP)
        frozen, before = time.monotonic(), progress(folder)
        runs.wait(process, lambda: not workers[-1].is_running())
        runs.wait(process, lambda: progress(folder) > (before[0], before[1] + 1))
        took = time.monotonic() - frozen
    print(f"trains again after {took:.0f} s")
    assert took < 2 * TIMEOUT_S + SLACK_S
    assert "a worker was lost, resuming from the last saved state" in runs.log.read_text()


def test_two_jobs_share_a_cluster_that_holds_one(tmp_path: Path) -> None:
    environment = marked_environment(tmp_path)
    with small_cluster(environment, 1, cpus=2) as nodes:
        connected = {**environment, "RAY_ADDRESS": nodes.address}
        with closing(Runs(tmp_path, ONE_WORKER, environment=connected, epochs=12)) as runs:
            processes = [runs.start(name) for name in ("first", "second")]
            for process in processes:
                runs.finish(process)
            assert "a worker was lost" not in runs.log.read_text()
