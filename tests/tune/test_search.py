"""A real search whose driver, trials and job are killed: what ended stays, what was running goes on."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kills import SMALL, Runs, kill_all, marked, workers

from lakd_ray import storage
from lakd_ray.config import Experiment, load
from lakd_ray.train.state import State

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

EPOCHS, TRIALS = 5, 3
EXPERIMENT = f"""stages: [prepare, teachers, tune]
{SMALL}tune: {{{{trials: {TRIALS}, concurrent: 1, epochs: {EPOCHS}, stopping: none}}}}
train: {{{{workers: 1}}}}
"""


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    one = Runs(tmp_path, EXPERIMENT, environment=marked(tmp_path), epochs=1)
    yield one
    one.close()


def lines(config: Experiment, trial: int) -> list[dict[str, Any]]:
    """Of the epochs that a trial has done; each says how long it took, so that one done again is told from it."""
    return list(State.read(storage.join(config.stage_folder("tune"), "trials", f"{trial:04d}")).metrics)


def test_what_ended_stays_and_what_was_running_goes_on(runs: Runs, tmp_path: Path) -> None:
    config, mark = load(runs.experiment("search")), str(tmp_path)
    process = runs.start("search")
    runs.wait(process, lambda: len(lines(config, 0)) >= 2)
    seen = {0: lines(config, 0)}
    process.send_signal(signal.SIGTERM)  # as `ray job stop` does
    process.wait(timeout=120)

    process = runs.start("search")
    runs.wait(process, lambda: len(lines(config, 1)) >= 2)
    assert lines(config, 0)[: len(seen[0])] == seen[0], "it went on after its last epoch"
    seen = {trial: lines(config, trial) for trial in (0, 1)}
    kill_all(process)

    process = runs.start("search")
    runs.wait(process, lambda: len(lines(config, 2)) >= 2)
    for trial, known in seen.items():
        assert lines(config, trial)[: len(known)] == known
    seen[2] = lines(config, 2)
    (running,) = workers(mark, "ImplicitFunc")
    running.kill()  # the trial alone: it is tried again
    runs.finish(process)

    for trial, known in seen.items():
        found = lines(config, trial)
        assert found[: len(known)] == known
        assert [line["epoch"] for line in found] == list(range(1, EPOCHS + 1))
    ended = storage.read_json(storage.join(config.stage_folder("tune"), "trials.json"))
    assert sorted(each["trial"] for each in ended) == [f"{trial:04d}" for trial in range(TRIALS)]
    assert {each["state"] for each in ended} == {"complete"}
    assert all(each["epochs"] == EPOCHS for each in ended)
