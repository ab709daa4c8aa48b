"""Runs of the command line that may be killed: started, watched, ended with all that they have started."""

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
MARK = "LAKD_TEST"  # in the environment of everything that a test starts

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
"""An experiment with a small corpus and network; `name`, `storage`, `network` and `epochs` are to be filled in."""


class Runs:
    """Processes that run an experiment file and may be killed.

    Args:
        content: of the file: `name`, `storage` and `network` are filled in, and what else `settings` has.
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
            assert process.poll() is None, f"it ended too early:\n{self.told()}"
            assert time.monotonic() < deadline, f"it got no further:\n{self.told()}"
            time.sleep(0.02)

    def finish(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.wait(timeout=900) == 0, self.told()

    def told(self) -> str:
        return self.log.read_text()[-4000:]

    def close(self) -> None:
        for process in self._processes:
            kill_all(process)


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """A driver and all that it has started, at once."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=60)


def marked(folder: Path) -> dict[str, str]:
    """An environment for what is started: its own home, and a mark to know it by."""
    home = folder / "home"
    home.mkdir()
    return {**os.environ, "HOME": str(home), "PYTHONUNBUFFERED": "1", MARK: str(folder)}


@contextmanager
def machines(environment: Mapping[str, str], count: int, cpus: int) -> Iterator["Machines"]:
    """A Ray cluster of a head, which has one CPU, and some nodes, which may be lost."""
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": 200 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", MARK):
            patch.setenv(name, environment[name])
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **size})
        try:
            yield Machines(cluster, count, {"num_cpus": cpus, **size})
        finally:
            cluster.shutdown()


class Machines:
    """The nodes of `machines`."""

    def __init__(self, cluster: Any, count: int, size: dict[str, int]) -> None:
        self._cluster, self._size = cluster, size
        self.address: str = cluster.address
        self._nodes = [cluster.add_node(**size) for _ in range(count)]

    def lose(self, training: Sequence[psutil.Process]) -> None:
        """Kill the node on which these processes run, and start another."""
        raylets = {_raylet_of(process) for process in training}
        (victim,) = (node for node in self._nodes if node.all_processes["raylet"][0].process.pid in raylets)
        self._cluster.remove_node(victim, allow_graceful=False)
        self._nodes.remove(victim)
        self._nodes.append(self._cluster.add_node(**self._size))


def _raylet_of(process: psutil.Process) -> int | None:
    """The node manager that a worker process belongs to."""
    return next((parent.pid for parent in process.parents() if parent.name() == "raylet"), None)


def workers(mark: str, kind: str) -> list[psutil.Process]:
    """Ray's processes of a kind in clusters with this mark in their environment."""
    processes = psutil.process_iter(["environ"])
    return [one for one in processes if (one.info["environ"] or {}).get(MARK) == mark and does(one, kind)]


def does(process: psutil.Process, kind: str) -> bool:
    """Whether it is one of Ray's of a kind (`ray::kind...`)."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return bool(words) and words[0].startswith(f"ray::{kind}")
