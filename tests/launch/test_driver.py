"""Retries after a worker group fails. Ray Train's `fit` is replaced by a script of failures."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import WorkerGroupError

from lakd_ray.config import Experiment, ModelConfig, Recipe
from lakd_ray.errors import StorageError, TrainingError
from lakd_ray.launch import driver as training
from lakd_ray.launch.run_queue import RunQueue
from lakd_ray.launch.worker import TrainingTask
from lakd_ray.runs.graph import Run, build_run_graph
from lakd_ray.runs.state import ResumePoint, RunState

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

WORKER_LOST = RuntimeError("the actor died")


def group_error(cause: Exception) -> TrainingFailedError:
    """Return the error as Ray Train raises it: first the collateral error of the other rank."""
    return WorkerGroupError("2 workers failed", {0: RuntimeError("connection reset"), 1: cause})


def user_error(cause: Exception) -> TrainingFailedError:
    """Return the error for an exception that the training function raised."""
    return group_error(UserExceptionWithTraceback(cause, "Traceback ..."))


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    recipe = Recipe(model=ModelConfig(pretrained="somewhere"))
    content = {"name": "x", "storage": str(tmp_path), "languages": ["en"], "train": {"max_failures": 2}}
    corpora = ({"name": "demo", "root": "nowhere"},)
    return Experiment.model_validate({**content, "corpora": corpora, "teacher": recipe, "student": recipe})


@pytest.fixture
def run_of(experiment: Experiment) -> Run:
    return build_run_graph(experiment).teachers[0]


@pytest.fixture
def queue(run_of: Run) -> Any:
    return ray.remote(num_cpus=0)(RunQueue).remote({run_of.id: [], "other": [], "dependent": [run_of.id]})


def events(queue: Any) -> list[tuple[str, str]]:
    return [(event["event"], event["run"]) for event in ray.get(queue.drain_events.remote())]


Script = Callable[[Iterator[Exception | int | None]], list[str]]


@pytest.fixture
def attempts(experiment: Experiment, run_of: Run, queue: Any, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Script of attempts: finish some epochs and lose a worker (a number), raise (an error), or succeed (None)."""
    attempted: list[str] = []

    def play(script: Iterator[Exception | int | None]) -> list[str]:
        class Trainer:
            def fit(self) -> None:
                ray.get(queue.next_run.remote("teachers"))
                step = next(script)
                attempted.append(repr(step))
                if isinstance(step, int):
                    folder = run_of.folder(experiment)
                    RunState(ResumePoint(RunState.read(folder).latest.epochs_done + step)).write(folder)
                    raise group_error(WORKER_LOST)
                if step is not None:
                    raise step

        monkeypatch.setattr(training, "_build_trainer", lambda *_: Trainer())
        return attempted

    return play


def test_a_lost_worker_is_replaced_and_reported(
    experiment: Experiment, run_of: Run, queue: Any, attempts: Script
) -> None:
    attempted = attempts(iter([group_error(WORKER_LOST), None]))
    training._fit(queue, [TrainingTask(experiment, run_of)], "teachers", False)
    assert len(attempted) == 2
    assert events(queue)[:3] == [("started", run_of.id), ("lost", run_of.id), ("started", run_of.id)]


def test_a_run_without_progress_fails_after_its_retries(
    experiment: Experiment, run_of: Run, queue: Any, attempts: Script
) -> None:
    attempted = attempts(iter([group_error(WORKER_LOST)] * 9))
    with pytest.raises(TrainingError, match=r"3 times without any progress: .*the actor died"):
        training._fit(queue, [TrainingTask(experiment, run_of)], "teachers", False)
    assert len(attempted) == 3


def test_losses_do_not_count_while_the_run_makes_progress(
    experiment: Experiment, run_of: Run, queue: Any, attempts: Script
) -> None:
    attempted = attempts(iter([1, 1, 1, 1, 1, None]))
    training._fit(queue, [TrainingTask(experiment, run_of)], "teachers", False)
    assert len(attempted) == 6


def test_a_user_error_is_raised_without_a_retry(
    experiment: Experiment, run_of: Run, queue: Any, attempts: Script
) -> None:
    attempted = attempts(iter([user_error(TrainingError("the loss is nan")), None]))
    with pytest.raises(TrainingError, match=r"^the loss is nan$"):
        training._fit(queue, [TrainingTask(experiment, run_of)], "teachers", False)
    assert len(attempted) == 1


def test_a_storage_error_is_retried(experiment: Experiment, run_of: Run, queue: Any, attempts: Script) -> None:
    attempted = attempts(iter([user_error(StorageError("the bucket does not answer")), None]))
    training._fit(queue, [TrainingTask(experiment, run_of)], "teachers", False)
    assert len(attempted) == 2


def test_other_runs_are_trained_after_one_fails(
    experiment: Experiment, run_of: Run, queue: Any, attempts: Script
) -> None:
    attempted = attempts(iter([user_error(TrainingError("the loss is nan")), None]))
    training._fit(queue, [TrainingTask(experiment, run_of)], "teachers", True)
    assert len(attempted) == 2
    assert events(queue) == [
        ("started", run_of.id), ("failed", run_of.id), ("failed", "dependent"), ("started", "other"),
    ]  # fmt: skip


def test_every_epoch_reaches_the_user_and_the_trackers(
    experiment: Experiment, run_of: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = {"run": run_of.id, "epoch": 1, "loss": 0.5, "dev_UR": 0.25}

    def fit(queue: Any, tasks: list[TrainingTask], name: str, keep_going: bool) -> None:
        queue.next_run.remote(name)
        queue.publish.remote({"event": "epoch", "run": run_of.id, "line": metrics})
        ray.get(queue.mark_done.remote(name))

    received: list[dict[str, Any]] = []
    monkeypatch.setattr(training, "_fit", fit)
    monkeypatch.setattr(training, "_pending_tasks", lambda tasks: {task.run.id: task for task in tasks})
    monkeypatch.setattr(training, "_log_missing_classes", lambda tasks, name: None)  # nothing is prepared
    training.train_tasks([TrainingTask(experiment, run_of)], name="teachers", on_event=received.append)
    assert [event["event"] for event in received] == ["started", "epoch", "finished"]
    (file,) = Path(experiment.folder, "tensorboard", run_of.id).iterdir()
    assert b"dev/UR" in file.read_bytes()
