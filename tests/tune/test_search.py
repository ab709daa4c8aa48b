"""A real search whose driver, trials and job are killed: what ended stays, what was running goes on."""

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.chaos import SMALL, Runs, kill_all, machines, marked, workers

from lakd_ray import storage
from lakd_ray.config import Experiment, load_config
from lakd_ray.runs.state import RunState

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

EPOCHS, TRIALS = 5, 3
EXPERIMENT = f"""stages: [prepare, teachers, tune]
{SMALL}tune: {{{{trials: {TRIALS}, max_concurrent_trials: 1, workers_per_trial: {{workers}}, epochs: {EPOCHS}, {{search}}}}}}
train: {{{{workers: 1}}}}
"""
ALONE = {"epochs": 1, "workers": 1, "search": "scheduler: none"}
RATES = "{student.optim.lr: {choices: [0.001, 0.003, 1.0e-30]}}"


@pytest.fixture
def runs(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Runs]:
    settings = {**ALONE, **getattr(request, "param", {})}
    with closing(Runs(tmp_path, EXPERIMENT, environment=marked(tmp_path), **settings)) as one:
        yield one


def lines(config: Experiment, trial: int) -> list[dict[str, Any]]:
    """Of the epochs that a trial has done; each says how long it took, so that one done again is told from it."""
    return list(RunState.read(storage.join(config.stage_folder("tune"), "trials", f"{trial:04d}")).metrics)


def test_what_ended_stays_and_what_was_running_goes_on(runs: Runs, tmp_path: Path) -> None:
    config, mark = load_config(runs.experiment("search")), str(tmp_path)
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
        assert lines(config, trial)[: len(known)] == known
    all_complete(config)


@pytest.mark.parametrize("runs", [{"workers": 2}], indirect=True)
def test_trials_of_two_workers_one_of_which_is_killed(runs: Runs, tmp_path: Path) -> None:
    config, mark = load_config(runs.experiment("search")), str(tmp_path)
    process = runs.start("search")
    runs.wait(process, lambda: len(lines(config, 0)) >= 2)
    known, training = lines(config, 0), workers(mark, "RayTrainWorker")
    assert len(training) == 2
    training[0].kill()
    runs.finish(process)
    assert lines(config, 0)[: len(known)] == known
    all_complete(config)


@pytest.mark.parametrize(
    "runs",
    [{"workers": 2, "search": f"grace_epochs: 2, reduction_factor: 2, sampler: grid, space: {RATES}"}],
    indirect=True,
)
def test_a_trial_that_is_stopped_takes_its_workers_with_it(runs: Runs, tmp_path: Path) -> None:
    """One of the learning rates learns nothing. Groups of two trials do not have room beside each other."""
    runs.finish(runs.start("search"))
    folder = load_config(runs.experiment("search")).stage_folder("tune")
    ended = storage.read_json(storage.join(folder, "trials.json"))
    assert {each["state"] for each in ended} == {"complete", "stopped"}
    assert not workers(str(tmp_path), "RayTrainWorker")


def test_the_machine_of_a_trial_is_lost(tmp_path: Path) -> None:
    """A head without room for a trial and two nodes, of which the one that trains is killed."""
    environment = marked(tmp_path)
    with machines(environment, 2, cpus=2) as nodes:
        reached_by = {**environment, "RAY_ADDRESS": nodes.address}
        with closing(Runs(tmp_path, EXPERIMENT, environment=reached_by, **ALONE)) as runs:
            config = load_config(runs.experiment("search"))
            process = runs.start("search")
            runs.wait(process, lambda: len(lines(config, 0)) >= 2)
            known = lines(config, 0)
            nodes.lose(workers(str(tmp_path), "ImplicitFunc"))
            runs.finish(process)
            assert lines(config, 0)[: len(known)] == known
            all_complete(config)


def all_complete(config: Experiment) -> None:
    """Every trial was trained to its end, no epoch twice."""
    for trial in range(TRIALS):
        assert [line["epoch"] for line in lines(config, trial)] == list(range(1, EPOCHS + 1))
    ended = storage.read_json(storage.join(config.stage_folder("tune"), "trials.json"))
    assert sorted(each["trial"] for each in ended) == [f"{trial:04d}" for trial in range(TRIALS)]
    assert {each["state"] for each in ended} == {"complete"}
    assert all(each["epochs"] == EPOCHS for each in ended)
