"""The training loop of a Ray Train worker: takes runs from the queue and trains them, one after the other."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from lakd_ray import storage
from lakd_ray.config import Experiment, to_dict
from lakd_ray.data import manifest as manifests
from lakd_ray.data.manifest import Manifest
from lakd_ray.launch import teacher_logits
from lakd_ray.launch.run_inputs import resolve_inputs
from lakd_ray.runs import record as records
from lakd_ray.runs.graph import Run, RunGraph, build_run_graph

if TYPE_CHECKING:
    from lakd_ray.train.monitoring import Notice

QUEUE_TIMEOUT_S = 300.0  # for a response of the queue, whose methods take no time
_POLL_INTERVAL_S, _NEXT_RUN_S = 1.0, 30.0


@dataclass(frozen=True)
class TrainingTask:
    """A run, and the experiment with the fold, seed and variant of its cell."""

    config: Experiment
    run: Run

    def to_dict(self) -> dict[str, Any]:
        """Convert the task to plain JSON types, for Ray."""
        return {"config": to_dict(self.config), "run": to_dict(self.run)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "TrainingTask":
        """Create a task from the result of `to_dict`."""
        return cls(Experiment.model_validate(content["config"]), Run.model_validate(content["run"]))

    @property
    def is_finished(self) -> bool:
        """Whether its folder contains a finished run; `records.is_done` checks that it is this one."""
        record = records.read_record(self.run.folder(self.config))
        return record is not None and record["finished"] is not None


def train_loop_per_worker(loop_config: dict[str, Any]) -> None:
    """Train the runs that the queue assigns to this worker's group; called by Ray Train on every rank.

    Args:
        loop_config: `queue`, an actor of `lakd_ray.launch.run_queue.RunQueue`; `group`, the worker group's name;
            `tasks`, all runs that may be in the queue, each converted by `TrainingTask.to_dict`; `fences`, the
            driver's right to write (`lakd_ray.storage.join_fences`).
    """
    import torch  # only workers need it

    from lakd_ray.launch.rank_collectives import RankCollectives

    storage.join_fences(loop_config["fences"])
    queue, name = loop_config["queue"], loop_config["group"]
    tasks = [TrainingTask.from_dict(entry) for entry in loop_config["tasks"]]
    by_id = {task.run.id: task for task in tasks}
    torch.set_num_threads(tasks[0].config.train.cpus_per_worker)
    context = ray.train.get_context()
    group = RankCollectives(context.get_world_rank(), context.get_world_size(), tasks[0].config.train.rank_wait_s)
    while (run := group.broadcast_from_rank0(partial(_next_run, queue, name))) != "":
        if run is None:
            continue
        with storage.explain_full_disk():
            stopped_at = _train_task(by_id[run], tasks, group, queue if group.rank == 0 else None, name)
        if group.rank == 0:
            ended = queue.mark_stopped.remote(name, stopped_at) if stopped_at else queue.mark_done.remote(name)
            ray.get(ended, timeout=QUEUE_TIMEOUT_S)
        if stopped_at:
            return


def _next_run(queue: Any, group: str) -> str | None:
    """Return the id of the group's next run; empty if none is left, None if none is ready yet.

    The other ranks wait for the result, so it must not take long.
    """
    deadline = time.monotonic() + _NEXT_RUN_S
    while time.monotonic() < deadline:
        action, run = ray.get(queue.next_run.remote(group), timeout=QUEUE_TIMEOUT_S)
        if action != "wait":
            return str(run)
        time.sleep(_POLL_INTERVAL_S)
    return None


def _train_task(
    task: TrainingTask, tasks: Sequence[TrainingTask], group: Any, queue: Any, group_name: str
) -> str | None:
    """Train a run; return the position of its saved state if the driver was interrupted, and None at its end."""
    import torch

    from lakd_ray.train.data_loader import RankDataLoader
    from lakd_ray.train.trainer import TrainingStopped, train_run

    config, run = task.config, task.run
    graph = build_run_graph(config)
    manifest = manifests.load_manifest(config)
    inputs = group.broadcast_from_rank0(partial(resolve_inputs, graph, manifest, run))
    logits = None
    if run.teachers:
        logits = torch.from_numpy(_ensure_teacher_logits(graph, task, tasks, manifest, group))
    source = group.get_or_compute_features(config, manifest, run.recipe.model)
    loader = RankDataLoader(run, config, manifest, logits, group.rank, group.world_size, source)
    try:
        train_run(
            loader,
            run.folder(config),
            inputs.fingerprint,
            list(inputs.teacher_provenance),
            partial(_report_epoch, queue),
            log=lambda text: queue.publish.remote({"event": "message", "run": run.id, "reason": text}),
            read_notice=partial(_read_notice, group, queue, group_name),
        )
    except TrainingStopped as stop:
        return str(stop)
    return None


def _ensure_teacher_logits(
    graph: RunGraph, task: TrainingTask, tasks: Sequence[TrainingTask], manifest: Manifest, group: Any
) -> teacher_logits.Logits:
    """Load the teacher logits of a run; missing ones are computed first, in one pass with those of the cell's runs."""
    runs = group.broadcast_from_rank0(lambda: [other.run for other in _tasks_sharing_teacher_pass(task, tasks)])
    compute = partial(group.compute_logits, graph.config, manifest)
    teacher_logits.ensure_logits(graph, manifest, runs, compute, group.broadcast_from_rank0)
    group.barrier()
    return teacher_logits.load_logits(graph, manifest, task.run)


def _tasks_sharing_teacher_pass(task: TrainingTask, tasks: Sequence[TrainingTask]) -> list[TrainingTask]:
    """Return the tasks of the same cell whose teachers are all trained."""
    by_id = {other.run.id: other for other in tasks}
    return [
        other
        for other in tasks
        if other.run.teachers
        and other.config.cell == task.config.cell
        and other.config.variant == task.config.variant
        and all(name not in by_id or by_id[name].is_finished for name in other.run.dependencies)
    ]


def _read_notice(group: Any, queue: Any, group_name: str) -> "Notice":
    """Return whether the driver was interrupted or a node of the group is about to be preempted.

    All ranks must call this: it is a barrier.
    """
    if group.broadcast_from_rank0(lambda: ray.get(queue.should_stop.remote(group_name), timeout=QUEUE_TIMEOUT_S)):
        return "stop"
    if os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") == "0":
        return ""
    return "" if ray.train.get_preemption_info() is None else "preemption"


def _report_epoch(queue: Any, epoch_metrics: dict[str, Any]) -> None:
    """Report an epoch to Ray Train and, on the first rank, to the driver."""
    if queue is not None:
        queue.publish.remote({"event": "epoch", "run": epoch_metrics["run"], "line": epoch_metrics})
    ray.train.report({key: value for key, value in epoch_metrics.items() if isinstance(value, int | float | str)})
