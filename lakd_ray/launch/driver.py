"""Start Ray Train worker groups, assign runs to them, and wait until all runs are done.

Starting a worker group takes tens of seconds (processes and imports). Each group therefore trains many runs: it
repeatedly takes the next ready run from a queue. `train.parallel_runs` groups do this in parallel.
"""

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, Literal

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend

from lakd_ray import cluster, signals, storage
from lakd_ray.config import Experiment
from lakd_ray.data import class_coverage
from lakd_ray.data import manifest as manifests
from lakd_ray.data.manifest import Manifest
from lakd_ray.devices import process_group_backend
from lakd_ray.errors import DiskFullError, LakdError, ResourceError, StorageError, TrainingError
from lakd_ray.launch.event_log import log_event, poll_events
from lakd_ray.launch.run_inputs import check_sources, resolve_inputs
from lakd_ray.launch.run_queue import RunQueue, TrainingEvent
from lakd_ray.launch.tracking import build_trackers, track_runs
from lakd_ray.launch.worker import QUEUE_TIMEOUT_S, TrainingTask, train_loop_per_worker
from lakd_ray.redaction import redact
from lakd_ray.runs import record
from lakd_ray.runs.graph import Run, RunGraph, build_run_graph
from lakd_ray.runs.state import RunState

TrainStage = Literal["teachers", "distill", "train"]
"""Teachers, students, or both by the same worker groups, which avoids starting the groups twice."""

_STOP_POLL_S = 0.2

logger = logging.getLogger(__name__)


def stage_tasks(graphs: Sequence[RunGraph], stage: TrainStage) -> list[TrainingTask]:
    """Return the runs of a training stage in all cells, each once, teachers before the students that need them."""
    tasks: dict[str, TrainingTask] = {}
    for graph in graphs:
        for run in _stage_runs(graph, stage):
            tasks.setdefault(run.id, TrainingTask(graph.config, run))
    return list(tasks.values())


def _stage_runs(graph: RunGraph, stage: TrainStage) -> Sequence[Run]:
    if stage == "teachers":
        return (*graph.teachers, *graph.cross_fitted)
    return graph.trained_students if stage == "distill" else graph.all_runs


def train_tasks(
    tasks: Sequence[TrainingTask],
    *,
    name: str,
    keep_going: bool = False,
    on_event: Callable[[TrainingEvent], None] = log_event,
) -> None:
    """Train the runs that are not done yet. All tasks belong to one experiment, but possibly to several cells.

    Args:
        tasks: the runs, teachers before the students that need them.
        name: name of the stage, for log lines and for Ray Train.
        keep_going: skip a run that fails and the runs that need it, and train the others.
        on_event: called with every event, see `lakd_ray.launch.run_queue`.

    Raises:
        StageError: a run's folder belongs to a different configuration, or a teacher is not trained.
        DataLeakageError: a teacher has seen data on which the student is evaluated.
        ConfigError: the package of a configured tracker is not installed.
        ResourceError: the cluster cannot hold one worker group.
        TrainingError: a run failed and its retries are used up (not with `keep_going`).
        LeaseError: a different process works on the experiment, or has taken it over.
    """
    pending = _pending_tasks(tasks)
    if len(pending) < len(tasks):
        done = [task.run.id for task in tasks if task.run.id not in pending]
        shown = ", ".join(done[:8]) + (f" and {len(done) - 8} more" if len(done) > 8 else "")
        logger.info(f"{name}: already done: {shown}")
    if not pending:
        return
    _log_missing_classes(pending.values(), name)
    folders = sorted({task.config.owner_folder(task.run.stage) for task in pending.values()})
    with ExitStack() as leases:
        for folder in folders:
            leases.enter_context(storage.hold(folder))
        _train_pending(pending, name=name, keep_going=keep_going, on_event=on_event)


def _train_pending(
    pending: Mapping[str, TrainingTask], *, name: str, keep_going: bool, on_event: Callable[[TrainingEvent], None]
) -> None:
    tasks = list(pending.values())
    trackers = build_trackers(tasks[0].config)
    cluster.check_resources(tasks[0].config, ("distill",), cluster.all_nodes())
    gpu = cluster.resolve_device(tasks[0].config).train.gpu
    dependencies = {
        run: [other for other in task.run.dependencies if other in pending] for run, task in pending.items()
    }
    queue: Any = ray.remote(**cluster.beside_driver())(RunQueue).remote(dependencies)
    with (
        track_runs(trackers, pending) as track,
        poll_events(lambda: ray.get(queue.drain_events.remote(), timeout=QUEUE_TIMEOUT_S), track, on_event),
    ):
        try:
            _fit_groups(queue, [_with_gpu(task, gpu) for task in tasks], name, keep_going)
        except Exception:
            queue.close.remote()  # the other groups end after their current run
            raise
        except BaseException:  # while it is handled, its traceback refers to Ray's controllers, which keeps them alive
            _save_states(queue, tasks[0].config.cluster.stop_s)
            raise


def _save_states(queue: Any, timeout_s: float) -> None:
    """Wait until the runs in training have saved their states; runs whose groups still start have none."""
    deadline = time.monotonic() + timeout_s
    with suppress(ray.exceptions.RayError):  # what the groups need may be gone already
        runs = ray.get(queue.stop.remote(), timeout=timeout_s)
        if runs:
            logger.info(f"interrupted: saving the state of {', '.join(runs)}; a second signal ends at once")
        while runs and time.monotonic() < deadline:
            time.sleep(_STOP_POLL_S)
            runs = ray.get(queue.stoppable_runs.remote(), timeout=timeout_s)
        if runs:
            logger.warning(f"{', '.join(runs)}: no state was saved within {timeout_s:g} s; an earlier one is used")


def _with_gpu(task: TrainingTask, gpu: Literal["auto", True, False]) -> TrainingTask:
    """Return the task with the device that its experiment trains on."""
    train = task.config.train.model_copy(update={"gpu": gpu})
    return replace(task, config=task.config.model_copy(update={"train": train}))


def _fit_groups(queue: Any, tasks: Sequence[TrainingTask], name: str, keep_going: bool) -> None:
    """Train runs from the queue with `train.parallel_runs` worker groups at a time."""
    num_groups = min(tasks[0].config.train.parallel_runs, len(tasks))
    if num_groups == 1:
        _fit(queue, tasks, name, keep_going)
        return
    fit = ray.remote(max_retries=0, **cluster.beside_driver())(_fit_in_task)
    fences = storage.current_fences()
    ray.get([fit.remote(fences, queue, tasks, f"{name}-{group}", keep_going) for group in range(num_groups)])


def _fit_in_task(fences: list[dict[str, Any]], *arguments: Any) -> None:
    """Run `_fit` in a Ray task, which hands the driver's fences on to its workers."""
    storage.join_fences(fences)
    _fit(*arguments)


def _pending_tasks(tasks: Sequence[TrainingTask]) -> dict[str, TrainingTask]:
    """Return the tasks whose runs are not trained yet, by run id."""
    pending: dict[str, TrainingTask] = {}
    unknown: set[str] = set()
    manifest: tuple[int, Manifest] | None = None
    graph: RunGraph | None = None
    for task in tasks:
        config, run = task.config, task.run
        if graph is None or graph.config is not config:  # the tasks of a cell are adjacent
            graph = build_run_graph(config)
        if manifest is None or manifest[0] != config.fold:
            manifest = config.fold, manifests.load_manifest(config)
        sources = check_sources(graph, manifest[1], run)  # before hours of training its teachers
        has_pending_dependency = bool(pending.keys() & set(run.dependencies))
        if has_pending_dependency or not record.is_done(
            run.folder(config), resolve_inputs(graph, manifest[1], run).fingerprint
        ):
            pending.setdefault(run.id, task)
            unknown.update(name for provenance in sources.values() for name in provenance.undisclosed_models)
    if unknown:
        logger.warning(
            f"the training data of {', '.join(sorted(unknown))} is not known: all results that depend on it will have "
            "the mark *. If it was not trained on these corpora, set `trained_on: []` before training"
        )
    return pending


def _log_missing_classes(tasks: Iterable[TrainingTask], name: str) -> None:
    """Log which classes dev and test of the tasks' folds lack, once for all runs."""
    config = next(iter(tasks)).config
    manifest = storage.read_table(storage.join(config.stage_folder("prepare"), manifests.MANIFEST_FILE))
    for sentence in class_coverage.describe_splits(manifest, config, {task.config.fold for task in tasks}):
        logger.info(f"{name}: {sentence}")


def _fit(queue: Any, tasks: Sequence[TrainingTask], name: str, keep_going: bool) -> None:
    """Train runs from the queue, and start a new worker group after one is lost.

    Ray Train's own retries are off: it would retry after every error, so that a user error would take minutes of
    repeated attempts before it is reported.
    """
    by_id = {task.run.id: task for task in tasks}
    failures: dict[str | None, int] = {}
    last_progress: dict[str | None, tuple[int, int]] = {}
    room = _GroupRoom(queue, tasks[0].config, name)
    while room.wait():
        try:
            with signals.preserved_handlers():  # an interruption is handled in `train_tasks`
                _build_trainer(queue, tasks, name).fit()
            return
        except ray.train.TrainingFailedError as error:
            if _was_not_placed(error):
                continue
            causes = _failure_causes(error)
            full = storage.find_full_disk(error, location=tasks[0].config.storage)
            reason = redact("; ".join(f"worker {rank}: {cause}" for rank, cause in causes.items()) or str(error))
            run = ray.get(queue.requeue.remote(name), timeout=QUEUE_TIMEOUT_S)
            user_error = full or next((cause for cause in causes.values() if _is_user_error(cause)), None)
            progress = _saved_progress(by_id[run]) if run in by_id else (0, 0)
            failures[run] = failures.get(run, 0) + 1 if progress == last_progress.get(run, progress) else 1
            last_progress[run] = progress
            if user_error is None and failures[run] <= tasks[0].config.train.max_failures:
                one_line = " ".join(reason.split())
                queue.publish.remote({"event": "lost", "run": run, "group": name, "reason": one_line})
                continue
            reason = str(user_error or f"training failed {failures[run]} times without any progress: {reason}")
            if run is None or not keep_going:
                raise user_error or TrainingError(reason) from error
            ray.get(queue.abandon.remote(run, reason), timeout=QUEUE_TIMEOUT_S)
            if not ray.get(queue.remaining.remote(), timeout=QUEUE_TIMEOUT_S):
                return


class _GroupRoom:
    """The room that a worker group needs in the cluster.

    Args:
        queue: receives the log lines.
        config: the experiment.
        name: name of the group.
    """

    def __init__(self, queue: Any, config: Experiment, name: str) -> None:
        self._queue, self._config, self._name = queue, config, name
        self._bundle = cluster.training_request(config).bundle

    def wait(self) -> bool:
        """Wait until the group fits into what is free; False if it never does, but other groups train the runs.

        Raises:
            ResourceError: the deadline has passed, and no group trains.
        """
        workers = self._config.train.workers
        needed = f"{self._name}: {workers} worker{'' if workers == 1 else 's'} with {self._bundle} each"
        try:
            cluster.wait_for_room(needed, self._bundle, workers, self._config.cluster, self._log)
        except ResourceError:
            if not ray.get(self._queue.is_training.remote(), timeout=QUEUE_TIMEOUT_S):
                raise
            self._log("the other worker groups train the remaining runs")
            return False
        return True

    def _log(self, text: str) -> None:
        self._queue.publish.remote({"event": "message", "run": None, "group": self._name, "reason": text})


def _was_not_placed(error: ray.train.TrainingFailedError) -> bool:
    """Return whether a different job was faster to take the resources, so that the group has not started."""
    cause = getattr(error, "controller_failure", None)
    return type(cause).__name__ == "WorkerGroupStartupTimeoutError"  # of a private module of Ray


def _failure_causes(error: ray.train.TrainingFailedError) -> dict[int, BaseException]:
    """Return the error of each failed worker, by rank."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {}
    return {rank: getattr(failure, "_base_exc", failure) for rank, failure in failures.items()}


def _is_user_error(cause: BaseException) -> bool:
    """Return whether a retry would fail in the same way. A storage error other than a full disk may be temporary."""
    return isinstance(cause, DiskFullError) or (isinstance(cause, LakdError) and not isinstance(cause, StorageError))


def _saved_progress(task: TrainingTask) -> tuple[int, int]:
    """Return the epochs and batches that a run has finished and saved."""
    state = RunState.read(task.run.folder(task.config))
    return state.latest.epochs_done, state.latest.batches_done


class _Backend(_TorchBackend):
    """Sets up the process group, and leaves its end to that of the processes."""

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Do nothing: the processes end next, and a frozen one would delay its replacement by 30 s."""


class TorchBackendConfig(TorchConfig):
    """Ray's configuration of torch's process group, whose end does not wait for frozen processes."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The class that sets up the process group."""
        return _Backend


def _build_trainer(queue: Any, tasks: Sequence[TrainingTask], name: str) -> TorchTrainer:
    config = tasks[0].config
    train = config.train
    filesystem, path = storage.resolve_filesystem(storage.join(config.folder, "ray"))
    os.environ |= {  # Ray Train passes these variables to its controller
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(train.collective_timeout_s),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(train.collective_timeout_s / 2),
    }
    # `_fit` handles every lost group, including preempted nodes, because it must update the queue.
    limits: Any = {"max_failures": 0, "controller_failure_limit": 0, "max_preemption_failures": 0}
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "queue": queue,
            "group": name,
            "tasks": [task.to_dict() for task in tasks],
            "fences": storage.current_fences(),
        },
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.reserved_gpus > 0,
            resources_per_worker=cluster.training_request(config).bundle.to_dict(),
        ),
        torch_config=TorchBackendConfig(
            backend=process_group_backend("cuda" if train.reserved_gpus else "cpu"),
            timeout_s=int(train.collective_timeout_s),
        ),
        run_config=RunConfig(
            name=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(**limits),
        ),
    )
