"""Start, watch and kill runs of the command line together with all their child processes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from support import tiny_models as tiny

ROOT = Path(__file__).parents[2]
MARK = "LAKD_TEST"  # an environment variable of all processes that a test starts

SMALL = """
name: {name}
storage: {storage}
languages: [en]
corpora:
  - name: demo
    importer: espeak
    root: "{{storage}}/corpus"
    options: {{speakers: 8, sentences: 2, languages: [en]}}
    split: {{scheme: speaker-folds, folds: 4, dev_speakers: 2}}
audio: {{row_group_utterances: 4}}
teacher: &recipe
  model:
    freeze_feature_encoder: false
    config: {network}
  optim: {{epochs: {epochs}, lr: 0.001}}
student: *recipe
distill: {{paradigms: [mtkd]}}
batch: {{max_padded_seconds: 12, max_utterances: 2}}
cluster: {{object_store_mb: 200, log_to_driver: true}}
"""
"""An experiment with a small corpus and network; a template with `name`, `storage`, `network` and `epochs`."""


class Runs:
    """Processes that run an experiment file and may be killed.

    Args:
        folder: folder of the files and of the storage.
        content: template of the file, filled in with `name`, `storage`, `network` and `settings`.
        environment: environment variables of the processes.
    """

    def __init__(self, folder: Path, content: str, *, environment: dict[str, str], **settings: object) -> None:
        self._folder, self._content, self._settings, self._environment = folder, content, settings, environment
        self._processes: list[subprocess.Popen[bytes]] = []
        self.log = folder / "log"

    def experiment(self, name: str) -> Path:
        file = self._folder / f"{name}.yaml"
        file.write_text(
            self._content.format(name=name, storage=self._folder / "out", network=tiny.NETWORK, **self._settings)
        )
        return file

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "lakd_ray", "pipeline", str(self.experiment(name))],
                cwd=ROOT, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def wait(self, process: "subprocess.Popen[bytes]", until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not until():
            assert process.poll() is None, f"it ended too early:\n{self.log_tail()}"
            assert time.monotonic() < deadline, f"it got no further:\n{self.log_tail()}"
            time.sleep(0.02)

    def finish(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.wait(timeout=900) == 0, self.log_tail()

    def log_tail(self) -> str:
        return self.log.read_text()[-4000:]

    def close(self) -> None:
        for process in self._processes:
            kill_tree(process)


def kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """Kill a driver and all its child processes at once."""
    try:
        processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        processes = []
    for member in processes:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=60)


def marked_environment(folder: Path) -> dict[str, str]:
    """Return an environment with a home directory of its own and a mark by which its processes are found."""
    home = folder / "home"
    home.mkdir()
    return {**os.environ, "HOME": str(home), "PYTHONUNBUFFERED": "1", MARK: str(folder)}


@contextmanager
def small_cluster(environment: Mapping[str, str], count: int, cpus: int) -> Iterator["WorkerNodes"]:
    """Start a Ray cluster of a head node with one CPU and a number of worker nodes that can be killed."""
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": 200 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", MARK):
            patch.setenv(name, environment[name])
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **size})
        try:
            yield WorkerNodes(cluster, count, {"num_cpus": cpus, **size})
        finally:
            cluster.shutdown()


class WorkerNodes:
    """The worker nodes of `small_cluster`."""

    def __init__(self, cluster: Any, count: int, size: dict[str, int]) -> None:
        self._cluster, self._size = cluster, size
        self.address: str = cluster.address
        self._nodes = [cluster.add_node(**size) for _ in range(count)]

    def lose(self, training: Sequence[psutil.Process]) -> None:
        """Kill the node on which these processes run, and start a new one."""
        raylets = {_raylet_of(process) for process in training}
        (victim,) = (node for node in self._nodes if node.all_processes["raylet"][0].process.pid in raylets)
        self._cluster.remove_node(victim, allow_graceful=False)
        self._nodes.remove(victim)
        self._nodes.append(self._cluster.add_node(**self._size))


def _raylet_of(process: psutil.Process) -> int | None:
    """Return the process id of the node manager to which a worker process belongs."""
    return next((parent.pid for parent in process.parents() if parent.name() == "raylet"), None)


def find_workers(mark: str, kind: str) -> list[psutil.Process]:
    """Return Ray's processes of a kind in clusters with this mark in their environment."""
    processes = psutil.process_iter(["environ"])
    return [
        process
        for process in processes
        if (process.info["environ"] or {}).get(MARK) == mark and is_worker(process, kind)
    ]


def is_worker(process: psutil.Process, kind: str) -> bool:
    """Return whether this is a Ray process of a kind, whose title is `ray::kind...`."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return bool(words) and words[0].startswith(f"ray::{kind}")
