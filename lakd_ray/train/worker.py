"""What every Ray Train worker does: take runs from the queue and train them, one after the other."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train

from lakd_ray import records
from lakd_ray.config import Experiment, dump
from lakd_ray.data import manifest as manifests
from lakd_ray.data.manifest import Manifest
from lakd_ray.runs import Run
from lakd_ray.train import teaching

_PAUSE_S = 1.0


@dataclass(frozen=True)
class Task:
    """A run, and the experiment with the fold, seed and variant that it belongs to."""

    config: Experiment
    run: Run

    def dump(self) -> dict[str, Any]:
        """Plain JSON types, for Ray."""
        return {"config": dump(self.config), "run": dump(self.run)}

    @classmethod
    def load(cls, content: dict[str, Any]) -> "Task":
        """The inverse of `dump`."""
        return cls(Experiment.model_validate(content["config"]), Run.model_validate(content["run"]))

    @property
    def finished(self) -> bool:
        """Whether its folder holds a finished run; `records.is_done` tells whether it is this one."""
        record = records.read(self.run.folder(self.config))
        return record is not None and record["finished"] is not None


def work(content: dict[str, Any]) -> None:
    """Ray Train's training function.

    Args:
        content: `queue`, an actor of `lakd_ray.train.queue.Queue`; `group`, the worker group's name; `tasks`, all runs
            that may be in the queue, as `Task.dump` makes them.
    """
    import torch  # only workers need it

    from lakd_ray.train.together import Group

    queue, name = content["queue"], content["group"]
    tasks = [Task.load(entry) for entry in content["tasks"]]
    by_id = {task.run.id: task for task in tasks}
    torch.set_num_threads(tasks[0].config.train.cpus_per_worker)
    context = ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size())
    while run := group.agreed(partial(_next, queue, name)):
        _train(by_id[run], tasks, group, queue if group.rank == 0 else None)
        if group.rank == 0:
            ray.get(queue.done.remote(name))


def _next(queue: Any, group: str) -> str:
    """The run that this group is to train; empty when there are none left."""
    while True:
        what, run = ray.get(queue.take.remote(group))
        if what != "wait":
            return str(run)
        time.sleep(_PAUSE_S)


def _train(task: Task, tasks: Sequence[Task], group: Any, queue: Any) -> None:
    import torch

    from lakd_ray.train.feed import Feed
    from lakd_ray.train.loop import train

    config, run = task.config, task.run
    manifest = manifests.load(config)
    job = group.agreed(partial(teaching.job, config, manifest, run))
    logits = None
    if run.teachers:
        logits = torch.from_numpy(_teacher_logits(task, tasks, manifest, group))
    source = group.features(config, manifest, run.recipe.model)
    feed = Feed(run, config, manifest, logits, group.rank, group.world, source)
    train(
        feed,
        run.folder(config),
        job.made_by,
        list(job.parents),
        partial(_report, queue),
        tell=lambda text: queue.tell.remote({"event": "told", "run": run.id, "reason": text}),
        leaving=_leaving,
    )


def _teacher_logits(task: Task, tasks: Sequence[Task], manifest: Manifest, group: Any) -> teaching.Logits:
    """Kept logits, computed first where they are missing; those of the cell's other runs in the same pass."""
    config = task.config
    asked = group.agreed(lambda: [other.run for other in _same_pass(task, tasks)])
    compute = partial(group.logits, config, manifest)
    teaching.store_logits(config, manifest, asked, compute, group.agreed)
    group.wait()
    return teaching.teacher_logits(config, manifest, task.run)


def _same_pass(task: Task, tasks: Sequence[Task]) -> list[Task]:
    """Runs of the same fold and seed whose teachers are all trained."""
    by_id = {other.run.id: other for other in tasks}
    return [
        other
        for other in tasks
        if other.run.teachers
        and other.config.cell == task.config.cell
        and other.config.variant == task.config.variant
        and all(name not in by_id or by_id[name].finished for name in other.run.needs)
    ]


def _leaving() -> bool:
    """Whether a machine of the group is about to be taken away. All ranks must ask: it is a barrier."""
    if os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") == "0":
        return False
    return ray.train.get_preemption_info() is not None


def _report(queue: Any, line: dict[str, Any]) -> None:
    """Tell Ray Train, and by the first rank the driver, of an epoch."""
    if queue is not None:
        queue.tell.remote({"event": "epoch", "run": line["run"], "line": line})
    ray.train.report({key: value for key, value in line.items() if isinstance(value, int | float | str)})
