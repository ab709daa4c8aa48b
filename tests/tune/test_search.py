"""A real search whose driver, trials and nodes are killed: ended trials remain, running ones resume."""

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.chaos import SMALL, Runs, find_workers, kill_tree, marked_environment, small_cluster

from lakd_ray import storage
from lakd_ray.config import Experiment, load_config
from lakd_ray.runs.state import RunState

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

EPOCHS, TRIALS = 5, 3
EXPERIMENT = f"""stages: [prepare, teachers, tune]
{SMALL}tune: {{{{trials: {TRIALS}, max_concurrent_trials: 1,
        workers_per_trial: {{workers}}, epochs: {EPOCHS}, {{search}}}}}}
train: {{{{workers: 1}}}}
"""
SINGLE_WORKER = {"epochs": 1, "workers": 1, "search": "scheduler: none"}
LEARNING_RATES = "{student.optim.lr: {choices: [0.001, 0.003, 1.0e-30]}}"


@pytest.fixture
def runs(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Runs]:
    settings = {**SINGLE_WORKER, **getattr(request, "param", {})}
    with closing(Runs(tmp_path, EXPERIMENT, environment=marked_environment(tmp_path), **settings)) as processes:
        yield processes


def trial_metrics(config: Experiment, trial: int) -> list[dict[str, Any]]:
    """Return the metrics of a trial's epochs; they include durations, so that a repeated epoch differs."""
    return list(RunState.read(storage.join(config.stage_folder("tune"), "trials", f"{trial:04d}")).metrics)


def test_ended_trials_remain_and_running_ones_resume(runs: Runs, tmp_path: Path) -> None:
    config, mark = load_config(runs.experiment("search")), str(tmp_path)
    process = runs.start("search")
    runs.wait(process, lambda: len(trial_metrics(config, 0)) >= 2)
    seen = {0: trial_metrics(config, 0)}
    process.send_signal(signal.SIGTERM)  # as `ray job stop` does
    process.wait(timeout=120)

    process = runs.start("search")
    runs.wait(process, lambda: len(trial_metrics(config, 1)) >= 2)
    assert trial_metrics(config, 0)[: len(seen[0])] == seen[0], "it resumed after its last epoch"
    seen = {trial: trial_metrics(config, trial) for trial in (0, 1)}
    kill_tree(process)

    process = runs.start("search")
    runs.wait(process, lambda: len(trial_metrics(config, 2)) >= 2)
    for trial, known in seen.items():
        assert trial_metrics(config, trial)[: len(known)] == known
    seen[2] = trial_metrics(config, 2)
    (running,) = find_workers(mark, "ImplicitFunc")
    running.kill()  # only the trial: it is retried
    runs.finish(process)

    for trial, known in seen.items():
        assert trial_metrics(config, trial)[: len(known)] == known
    assert_all_complete(config)


@pytest.mark.parametrize("runs", [{"workers": 2}], indirect=True)
def test_a_worker_of_a_trial_is_killed(runs: Runs, tmp_path: Path) -> None:
    config, mark = load_config(runs.experiment("search")), str(tmp_path)
    process = runs.start("search")
    runs.wait(process, lambda: len(trial_metrics(config, 0)) >= 2)
    known, training = trial_metrics(config, 0), find_workers(mark, "RayTrainWorker")
    assert len(training) == 2
    training[0].kill()
    runs.finish(process)
    assert trial_metrics(config, 0)[: len(known)] == known
    assert_all_complete(config)


@pytest.mark.parametrize(
    "runs",
    [{"workers": 2, "search": f"grace_epochs: 2, reduction_factor: 2, sampler: grid, space: {LEARNING_RATES}"}],
    indirect=True,
)
def test_a_stopped_trial_ends_its_workers(runs: Runs, tmp_path: Path) -> None:
    """One of the learning rates trains nothing. The cluster cannot hold the worker groups of two trials."""
    runs.finish(runs.start("search"))
    folder = load_config(runs.experiment("search")).stage_folder("tune")
    ended = storage.read_json(storage.join(folder, "trials.json"))
    assert {trial["state"] for trial in ended} == {"complete", "stopped"}
    assert not find_workers(str(tmp_path), "RayTrainWorker")


def test_the_node_of_a_trial_is_lost(tmp_path: Path) -> None:
    """A head node too small for a trial and two nodes; the one that trains is killed."""
    environment = marked_environment(tmp_path)
    with small_cluster(environment, 2, cpus=2) as nodes:
        connected = {**environment, "RAY_ADDRESS": nodes.address}
        with closing(Runs(tmp_path, EXPERIMENT, environment=connected, **SINGLE_WORKER)) as runs:
            config = load_config(runs.experiment("search"))
            process = runs.start("search")
            runs.wait(process, lambda: len(trial_metrics(config, 0)) >= 2)
            known = trial_metrics(config, 0)
            nodes.lose(find_workers(str(tmp_path), "ImplicitFunc"))
            runs.finish(process)
            assert trial_metrics(config, 0)[: len(known)] == known
            assert_all_complete(config)


def assert_all_complete(config: Experiment) -> None:
    """Assert that every trial was trained to its end, without a repeated epoch."""
    for trial in range(TRIALS):
        assert [line["epoch"] for line in trial_metrics(config, trial)] == list(range(1, EPOCHS + 1))
    ended = storage.read_json(storage.join(config.stage_folder("tune"), "trials.json"))
    assert sorted(trial["trial"] for trial in ended) == [f"{trial:04d}" for trial in range(TRIALS)]
    assert {trial["state"] for trial in ended} == {"complete"}
    assert all(trial["epochs"] == EPOCHS for trial in ended)
