"""The grid as a Ray job that is killed at three stages and finishes: real cluster, real audio, real training."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.ray_cluster import ROOT, Cluster, started

from lakd_ray import storage
from lakd_ray.config import Experiment, load_config
from lakd_ray.launch.plan import plan_grid

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3000)]

FILE = "paper-demo"
SMALL = ["corpora.0.options.sentences=2", "teacher.optim.epochs=2", "student.optim.epochs=2", "grid.seeds=[42]"]


def submit(cluster: Cluster, storage_folder: str, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "jobs/submit.py", "run_grid", FILE, "--set", f"storage={storage_folder}", *SMALL]
    with log.open("wb") as stream:
        return subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=stream, stderr=subprocess.STDOUT)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with started() as cluster:
        yield cluster


def entries(config: Experiment) -> list[dict[str, Any]]:
    location = f"{config.stage_folder('grid')}/events.jsonl"
    if not storage.exists(location):
        return []
    return [json.loads(line) for line in storage.read_bytes(location).splitlines()]


def count(config: Experiment, event: str, prefix: tuple[str, ...]) -> int:
    return sum(entry["event"] == event and entry["run"].startswith(prefix) for entry in entries(config))


def wait(process: "subprocess.Popen[bytes]", reached: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 900
    while not reached():
        assert process.poll() is None, f"it ended too early:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"not reached in time:\n{log.read_text()[-3000:]}"
        time.sleep(0.1)


def driver(storage_folder: str) -> int:
    """Return the process id of the job on the cluster."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"storage={storage_folder}" in words and "jobs/run_grid.py" in words:
            return int(folder.name)
    raise AssertionError("the job's process was not found")


def test_the_grid_is_killed_three_times_and_finishes(cluster: Cluster, tmp_path: Path) -> None:
    out, log = str(tmp_path / "out"), tmp_path / "log"
    config = load_config(FILE, [f"storage={out}", *SMALL])
    students = ("kd-", "mtkd-")

    process = submit(cluster, out, log)  # killed among the teachers, as when memory runs out
    wait(process, lambda: count(config, "finished", ("teacher-",)) >= 1, log)
    os.kill(driver(out), signal.SIGKILL)
    assert process.wait(timeout=120) not in (0, 130)
    first = count(config, "finished", ("teacher-",))

    process = submit(cluster, out, log)  # stopped among the students, by a different user
    wait(process, lambda: count(config, "finished", students) >= 1, log)
    (job,) = set(re.findall(r"submitted (\S+) to", log.read_text()))
    subprocess.run(["ray", "job", "stop", job], env=cluster.environment, check=True, capture_output=True, timeout=120)
    assert process.wait(timeout=120) == 130

    process = submit(cluster, out, log)  # the cluster is stopped during evaluation
    runs = [task.run for task in plan_grid(config).tasks]
    wait(process, lambda: count(config, "finished", ("",)) == len(runs), log)
    cluster.script("stop")
    process.terminate()
    process.wait(timeout=120)
    cluster.start()

    process = submit(cluster, out, log)
    assert process.wait(timeout=900) == 0, log.read_text()[-3000:]
    finished = Counter(entry["run"] for entry in entries(config) if entry["event"] == "finished")
    assert finished == {run.id: 1 for run in runs}
    assert 1 <= first < len(runs)
    assert count(config, "failed", ("",)) == 0
    report = storage.read_json(f"{config.stage_folder('report')}/report.json")
    assert {row["seed"] for row in report["results"]} == {42} and {row["fold"] for row in report["results"]} == {0, 1}
    settings = {(row["paradigm"], row["setup"], row["variant"]) for row in report["pooled"]}
    assert settings >= {("ft", "monolingual", None), ("kd", "multilingual", "reference"), ("mtkd", "monolingual", None)}
    both_folds = 2 * 3 * 2 * 2 * 4  # folds, languages, speakers, sentences, emotions
    assert {row["n"] for row in report["pooled"] if row["language"] == "all"} == {both_folds}
