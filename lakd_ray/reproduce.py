"""The whole grid of an experiment: every fold, seed and variant as one job that goes on where it was interrupted.

Runs that several cells need are trained once; worker groups take runs from one queue; a run that fails is left, and the
others go on. What happened to which run stands in `<storage>/<experiment>/reproduce/ledger.jsonl`.
"""

import itertools
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import Experiment, with_variant
from lakd_ray.data import manifest as manifests
from lakd_ray.data import prepare, splits
from lakd_ray.data.manifest import Manifest
from lakd_ray.errors import StageError, TrainingError
from lakd_ray.inference import evaluate
from lakd_ray.launch.driver import train_tasks
from lakd_ray.launch.progress import format_duration, format_epoch
from lakd_ray.launch.tracking import manager
from lakd_ray.launch.worker import TrainingTask
from lakd_ray.runs.graph import Run, RunGraph, build_run_graph
from lakd_ray.runs.state import RunState

RUN_LOG_FILE = "ledger.jsonl"


@dataclass(frozen=True)
class GridPlan:
    """What is to be run, and what it costs."""

    cells: tuple[RunGraph, ...]
    """The runs of each fold, seed and variant."""
    tasks: tuple[TrainingTask, ...]
    """Every run once, teachers before the students that need them."""
    train_seconds: dict[str, float]
    """Audio that each run is trained on, all epochs, in seconds."""
    runs_without_sharing: int
    """Runs that there were if nothing was shared."""
    teacher_inference_seconds: float
    """Audio that teachers are asked about, once, in seconds."""
    online_teacher_seconds: float
    """The same if teachers were asked in every step."""


def run_grid(config: Experiment, *, dry_run: bool = False, throughput: float | None = None) -> str | None:
    """Prepare, train what is not trained, evaluate and report.

    Args:
        dry_run: print the plan and its cost, and do nothing.
        rate: audio-seconds a second that one worker group trains, for the cost; measured by finished runs if None.

    Returns:
        Where the report lies; None for a dry run.

    Raises:
        ConfigError: a configured tracker is not installed.
        TrainingError: runs failed; what could be done without them is done.
    """
    if not dry_run:
        manager.check_tracker_packages(config)
        prepare.run(config)
    plan = build_plan(config)
    print(format_plan(config, plan, throughput), flush=True)
    if dry_run:
        return None
    ledger = RunLog(config, plan)
    train_tasks(plan.tasks, name="reproduce", keep_going=True, on_event=ledger.on_event)
    ledger.reconcile()
    for fold in dict.fromkeys(cell.config.fold for cell in plan.cells):
        evaluate.run(*(cell for cell in plan.cells if cell.config.fold == fold), exclude=ledger.failed)
    return _write_report(config, plan, ledger)


def build_plan(config: Experiment) -> GridPlan:
    """Cells and runs; the data must be prepared.

    Raises:
        StageError: they are not.
        SplitError: a fold cannot be made.
    """
    if not storage.exists(storage.join(config.stage_folder("prepare"), manifests.MANIFEST_FILE)):
        raise StageError(
            f"nothing is prepared in {config.stage_folder('prepare')}: folds and hours are counted from the prepared "
            "data. Run `lakd prepare` with this experiment first."
        )
    cells, tasks = [], {}
    seconds: dict[str, float] = {}
    together, asked, in_every_step = 0, 0.0, 0.0
    variants = [config.model_copy(update={"grid": config.grid.model_copy(update={"variants": {}})})]
    variants += [with_variant(config, name) for name in config.grid.variants]
    loaded: dict[int, Manifest] = {}
    for seed, fold in itertools.product(config.grid.seeds, _resolve_folds(config)):
        for variant in variants:
            cell = variant.model_copy(update={"fold": fold, "seed": seed})
            if fold not in loaded:
                loaded[fold] = manifests.load_manifest(cell)
            graph = build_run_graph(cell)
            cells.append(graph)
            runs = graph.all_runs
            together += len([each for each in runs if each.stage == "distill" or variant is variants[0]])
            for each in runs:
                once = _train_seconds(loaded[fold], each)
                if each.id not in tasks:
                    tasks[each.id] = TrainingTask(cell, each)
                    seconds[each.id] = once * each.recipe.optim.epochs
                    in_every_step += seconds[each.id] * len(each.teachers)
        asked += _teacher_inference_seconds(loaded[fold], cells[-1])
    return GridPlan(tuple(cells), tuple(tasks.values()), seconds, together, asked, in_every_step)


def _resolve_folds(config: Experiment) -> tuple[int, ...]:
    if config.grid.folds is not None:
        return config.grid.folds
    table = storage.read_table(storage.join(config.stage_folder("prepare"), manifests.MANIFEST_FILE))
    return tuple(range(splits.count_folds(table, config)))


def _train_seconds(manifest: Manifest, run: Run) -> float:
    rows = manifest.rows("train", run.languages)
    share = 1.0 if run.held_out_fold is None else 1 - 1 / run.held_out_fold.num_folds
    return share * float(manifest.num_samples_N[rows].sum()) / SAMPLE_RATE


def _teacher_inference_seconds(manifest: Manifest, graph: RunGraph) -> float:
    return len(graph.teachers) * float(manifest.num_samples_N[manifest.rows("train")].sum()) / SAMPLE_RATE


def format_plan(config: Experiment, plan: GridPlan, throughput: float | None) -> str:
    """The plan for people."""
    kinds = {
        "teachers": [task for task in plan.tasks if task.run.stage == "teachers" and task.run.held_out_fold is None],
        "teachers for cross-fitting": [task for task in plan.tasks if task.run.held_out_fold is not None],
        "students": [task for task in plan.tasks if task.run.stage == "distill"],
    }
    done = {task.run.id for task in plan.tasks if task.is_finished}
    folds, seeds = (len({getattr(cell.config, name) for cell in plan.cells}) for name in ("fold", "seed"))
    variants = len({cell.config.variant for cell in plan.cells})
    lines = [
        f"plan: {folds} folds x {seeds} seeds x {variants} settings of the students = {len(plan.cells)} cells, "
        f"{len(plan.tasks)} runs" + _sharing_note(plan),
        f"  {'':<28}{'runs':>6}{'done':>6}{'audio-hours':>14}{'left':>10}",
    ]
    for kind, tasks in kinds.items():
        hours = [
            sum(plan.train_seconds[task.run.id] for task in some) / 3600
            for some in (tasks, _unfinished_tasks(tasks, done))
        ]
        finished = len(tasks) - len(_unfinished_tasks(tasks, done))
        lines.append(f"  {kind:<28}{len(tasks):>6}{finished:>6}{hours[0]:>14.1f}{hours[1]:>10.1f}")
    lines.append(
        f"  teachers are asked about at most {plan.teacher_inference_seconds / 3600:.1f} audio-hours once, not about "
        f"{plan.online_teacher_seconds / 3600:.1f} in every step"
    )
    left = sum(plan.train_seconds[task.run.id] for task in _unfinished_tasks(plan.tasks, done))
    return "\n".join([*lines, "  " + _format_cost(config, plan, left, throughput)])


def _sharing_note(plan: GridPlan) -> str:
    if plan.runs_without_sharing == len(plan.tasks):
        return ""
    return f" (not {plan.runs_without_sharing}: what cells have in common is trained once)"


def _unfinished_tasks(tasks: Any, done: set[str]) -> list[TrainingTask]:
    return [task for task in tasks if task.run.id not in done]


def _format_cost(config: Experiment, plan: GridPlan, remaining_seconds: float, throughput: float | None) -> str:
    """Hours of devices that the rest takes."""
    unit, devices = ("GPU", config.train.workers) if config.train.gpu else ("CPU", config.train.workers)
    where = "as given"
    if throughput is None:
        throughput = _measure_throughput(plan)
        where = "the median of the finished runs' epochs"
    if throughput is None:
        return f"{unit}-hours: not known before a run is finished; give --rate AUDIO_SECONDS_PER_SECOND of one run"
    hours = remaining_seconds / throughput / 3600
    return (
        f"left: {hours * devices:.1f} {unit}-hours, {hours / config.train.parallel_runs:.1f} hours with "
        f"{config.train.parallel_runs} runs side by side, at {throughput:.0f} audio-seconds a second for one run ({where}); "
        "evaluation and start-up come on top"
    )


def _measure_throughput(plan: GridPlan) -> float | None:
    speeds = [
        line["audio_seconds_per_second"]
        for task in plan.tasks
        if task.is_finished
        for line in RunState.read(task.run.folder(task.config)).metrics
    ]
    return float(np.median(speeds)) if speeds else None


@dataclass
class RunLog:
    """What happened to every run, kept over restarts, and the progress that people see."""

    config: Experiment
    plan: GridPlan
    failed: dict[str, str] = field(default_factory=dict)
    """Runs that failed for good this time, and why."""
    _events: list[dict[str, Any]] = field(default_factory=list)
    _trained_seconds: float = 0.0
    _started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._location = storage.join(self.config.stage_folder("reproduce"), RUN_LOG_FILE)
        if storage.exists(self._location):
            self._events = [json.loads(line) for line in storage.read_bytes(self._location).splitlines()]
        self.reconcile()

    def on_event(self, event: dict[str, Any]) -> None:
        """Print an event; keep it, unless it is but an epoch."""
        if event["event"] == "epoch":
            self._trained_seconds += event["line"]["audio_seconds"]
            print(format_epoch(event["line"]), flush=True)
            return
        if event["event"] == "failed":
            self.failed[event["run"]] = event["reason"]
        self._append(event)
        reason = f" ({event['reason'][:200]})" if "reason" in event else ""
        print(f"[{self._progress()}] {event['run']} {event['event']}{reason}", flush=True)

    def reconcile(self) -> None:
        """Enter runs that finished when nobody could write it down."""
        entered = self._finished_runs()
        for task in self.plan.tasks:
            if task.run.id not in entered and task.is_finished:
                self._append({"event": "finished", "run": task.run.id, "noticed": "later"})

    def _finished_runs(self) -> set[str]:
        return {entry["run"] for entry in self._events if entry["event"] == "finished"}

    def _append(self, event: dict[str, Any]) -> None:
        if event["event"] == "finished" and event["run"] in self._finished_runs():
            return
        self._events.append({"time": datetime.now(UTC).isoformat(timespec="seconds"), **event})
        storage.write_bytes(self._location, "".join(json.dumps(entry) + "\n" for entry in self._events).encode())

    def _progress(self) -> str:
        done, elapsed = self._finished_runs(), time.perf_counter() - self._started
        left = sum(
            self.plan.train_seconds[task.run.id]
            for task in self.plan.tasks
            if task.run.id not in done | set(self.failed)
        )
        shown = f"{len(done)}/{len(self.plan.tasks)} runs, {len(self.failed)} failed"
        return (
            f"{shown}, {format_duration(left * elapsed / self._trained_seconds)} left"
            if self._trained_seconds
            else shown
        )


def _write_report(config: Experiment, plan: GridPlan, run_log: RunLog) -> str:
    from lakd_ray import report as reports  # matplotlib takes seconds to load

    location = reports.write_report(config, plan.cells, sorted(run_log.failed))
    print(f"\n{reports.format_summary(reports.read_report(config))}")
    print(f"report: {location}")
    if run_log.failed:
        raise TrainingError(
            f"{len(run_log.failed)} of {len(plan.tasks)} runs failed; the report is without them, and the same command "
            "tries them again:\n  " + "\n  ".join(f"{run}: {reason}" for run, reason in run_log.failed.items())
        )
    return location
