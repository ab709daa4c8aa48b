"""Training stages: hand runs to Ray Train worker groups, watch them, and come back when all are done.

Starting a worker group costs tens of seconds (processes and imports), so a group trains one run after the other, taking
from a queue what can be trained next; `train.parallel_runs` groups do so at the same time.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from lakd_ray import cluster, storage
from lakd_ray.data import manifest as manifests
from lakd_ray.data.manifest import Manifest
from lakd_ray.errors import LakdError, StorageError, TrainingError
from lakd_ray.launch import teacher_logits
from lakd_ray.launch.progress import poll_events, print_event
from lakd_ray.launch.run_queue import RunQueue, TrainingEvent
from lakd_ray.launch.tracking.manager import build_trackers, track_runs
from lakd_ray.launch.worker import TrainingTask, train_loop_per_worker
from lakd_ray.runs import record
from lakd_ray.runs.graph import Run, RunGraph, build_run_graph
from lakd_ray.runs.state import RunState


def train_teachers(graph: RunGraph) -> list[str]:
    """The teachers stage: one fine-tuned model per language, and a multilingual one if paradigm kd needs it.

    Returns:
        The runs' folders.
    """
    return _run_stage(graph, [*graph.teachers, *graph.cross_fitted], "teachers")


def train_students(graph: RunGraph) -> list[str]:
    """The distill stage: every student of the experiment, teacher logits computed once and stored.

    Returns:
        The runs' folders.

    Raises:
        StageError: a teacher is not trained.
        DataLeakageError: a teacher has seen what the student will be judged on.
    """
    return _run_stage(graph, graph.trained_students, "distill")


def train_teachers_and_students(graph: RunGraph) -> list[str]:
    """Both stages by the same worker groups, which saves starting them twice."""
    return _run_stage(graph, graph.all_runs, "train")


def _run_stage(graph: RunGraph, runs: Sequence[Run], name: str) -> list[str]:
    for run in graph.students if name != "teachers" else ():
        if graph.is_teacher(run.id):
            print(f"{name}: {run.paradigm} {run.setup} is trained exactly as {run.id}, which is used")
    train_tasks([TrainingTask(graph.config, run) for run in runs], name=name)
    return [run.folder(graph.config) for run in runs]


def train_tasks(
    tasks: Sequence[TrainingTask],
    *,
    name: str,
    keep_going: bool = False,
    on_event: Callable[[TrainingEvent], None] = print_event,
) -> None:
    """Train those of the runs that are not done. All are of one experiment, perhaps of several of its cells.

    Args:
        keep_going: leave a run that fails, and those that need it, and go on with the others.
        tell: called with everything that happens, see `lakd_ray.launch.run_queue`.

    Raises:
        StageError: a run's folder was made by another configuration, or a teacher is not trained.
        ConfigError: a configured tracker is not installed.
        ResourceError: the cluster cannot hold one worker group.
        TrainingError: a run failed and its retries are used up (not with `keep_going`).
    """
    todo = _pending_tasks(tasks)
    if len(todo) < len(tasks):
        done = [task.run.id for task in tasks if task.run.id not in todo]
        shown = ", ".join(done[:8]) + (f" and {len(done) - 8} more" if len(done) > 8 else "")
        print(f"{name}: already done, {shown}")
    if not todo:
        return
    config = tasks[0].config
    watching = build_trackers(config)
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]  # untyped in Ray
    cluster.check_resources(config, ("distill",), have)
    needs = {run: [other for other in task.run.dependencies if other in todo] for run, task in todo.items()}
    queue: Any = ray.remote(num_cpus=0)(RunQueue).remote(needs)
    groups = min(config.train.parallel_runs, len(todo))
    with (
        track_runs(watching, todo) as track,
        poll_events(lambda: ray.get(queue.drain_events.remote()), track, on_event),
    ):
        try:
            if groups == 1:
                _fit(queue, list(todo.values()), name, keep_going)
                return
            fit = ray.remote(num_cpus=0, max_retries=0)(_fit)
            ray.get([fit.remote(queue, list(todo.values()), f"{name}-{group}", keep_going) for group in range(groups)])
        except BaseException:
            queue.close.remote()  # other groups end after the run that they are at
            raise


def _pending_tasks(tasks: Sequence[TrainingTask]) -> dict[str, TrainingTask]:
    """Runs that are still to be trained, by id."""
    todo: dict[str, TrainingTask] = {}
    loaded: dict[int, Manifest] = {}
    graph: RunGraph | None = None
    for task in tasks:
        config, run = task.config, task.run
        if graph is None or graph.config is not config:  # tasks of a cell follow each other
            graph = build_run_graph(config)
        if config.fold not in loaded:
            loaded = {config.fold: manifests.load_manifest(config)}
        waits = bool(todo.keys() & set(run.dependencies))
        if waits or not record.is_done(
            run.folder(config), teacher_logits.resolve_inputs(graph, loaded[config.fold], run).fingerprint
        ):
            todo.setdefault(run.id, task)
    return todo


def _fit(queue: Any, tasks: Sequence[TrainingTask], name: str, keep_going: bool) -> None:
    """Train runs from the queue, by one worker group after another if groups are lost.

    Ray Train would try again by itself, but it would do so after any error: a mistake of the user's would be made anew,
    at a minute each, before it is told.
    """
    by_id = {task.run.id: task for task in tasks}
    failures: dict[str | None, int] = {}
    reached: dict[str | None, tuple[int, int]] = {}
    while True:
        try:
            _build_trainer(queue, tasks, name).fit()
            return
        except ray.train.TrainingFailedError as error:
            causes = _failure_causes(error)
            told = "; ".join(f"worker {rank}: {cause}" for rank, cause in causes.items()) or str(error)
            run = ray.get(queue.requeue.remote(name))
            mistake = next((cause for cause in causes.values() if _is_user_error(cause)), None)
            now = _saved_progress(by_id[run]) if run in by_id else (0, 0)
            failures[run] = failures.get(run, 0) + 1 if now == reached.get(run, now) else 1
            reached[run] = now
            if mistake is None and failures[run] <= tasks[0].config.train.max_failures:
                ray.get(queue.publish.remote({"event": "lost", "run": run or name, "reason": told}))
                continue
            told = str(mistake) if mistake else f"training failed {failures[run]} times without getting on: {told}"
            if run is None or not keep_going:
                raise mistake or TrainingError(told) from error
            ray.get(queue.abandon.remote(run, told))
            if not ray.get(queue.remaining.remote()):
                return


def _failure_causes(error: ray.train.TrainingFailedError) -> dict[int, BaseException]:
    """What each failed worker raised, or how it was lost."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {}
    return {rank: getattr(failure, "_base_exc", failure) for rank, failure in failures.items()}


def _is_user_error(cause: BaseException) -> bool:
    """Whether trying again would end the same way. Storage may be back."""
    return isinstance(cause, LakdError) and not isinstance(cause, StorageError)


def _saved_progress(task: TrainingTask) -> tuple[int, int]:
    """Epochs and batches that a run has finished and saved."""
    state = RunState.read(task.run.folder(task.config))
    return state.latest.epoch, state.latest.cursor


def _build_trainer(queue: Any, tasks: Sequence[TrainingTask], name: str) -> TorchTrainer:
    config = tasks[0].config
    train = config.train
    filesystem, path = storage.resolve_filesystem(storage.join(config.folder, "ray"))
    # Every loss comes back to `_fit`, that of a machine that was taken away too: the queue must hear of it.
    limits: Any = {"max_failures": 0, "controller_failure_limit": 0, "max_preemption_failures": 0}
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"queue": queue, "group": name, "tasks": [task.to_dict() for task in tasks]},
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpu,
            resources_per_worker={"CPU": train.cpus_per_worker, **({"GPU": 1} if train.gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if train.gpu else "gloo", timeout_s=int(train.collective_timeout_s)),
        run_config=RunConfig(
            name=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(**limits),
        ),
    )
