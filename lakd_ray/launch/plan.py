"""The plan of a grid: its cells, the runs that they share, and the cost of training them."""

import itertools
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import Experiment, with_variant
from lakd_ray.data import manifest as manifests
from lakd_ray.data import splits
from lakd_ray.data.manifest import Manifest
from lakd_ray.errors import StageError
from lakd_ray.launch.driver import stage_tasks
from lakd_ray.launch.run_inputs import check_sources
from lakd_ray.launch.worker import TrainingTask
from lakd_ray.runs.graph import Run, RunGraph, build_run_graph
from lakd_ray.runs.state import RunState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GridPlan:
    """The runs of a grid and what they cost."""

    config: Experiment
    """The experiment."""
    graphs: tuple[RunGraph, ...]
    """The runs of each seed, fold and variant."""
    tasks: tuple[TrainingTask, ...]
    """Every run once, teachers before the students that need them."""
    train_seconds: dict[str, float]
    """Audio that each run is trained on in all its epochs, in seconds, by run id."""
    runs_without_sharing: int
    """Number of runs if cells shared none."""
    teacher_inference_seconds: float
    """Audio of computing the teacher logits once, in seconds."""
    online_teacher_seconds: float
    """Audio of computing the teacher logits in every training step, in seconds."""
    selected_on_test: dict[int, list[str]]
    """Test speakers whose results selected the settings of the students, by fold; without folds that have none."""


def plan_grid(config: Experiment) -> GridPlan:
    """Plan all cells of an experiment's grid; the data must be prepared.

    Raises:
        StageError: the data are not prepared.
        SplitError: a fold is impossible.
        DataLeakageError: a pretrained model or an external teacher has seen data on which a run is evaluated.
    """
    manifest_location = storage.join(config.stage_folder("prepare"), manifests.MANIFEST_FILE)
    if not storage.exists(manifest_location):
        raise StageError(
            f"nothing is prepared in {config.stage_folder('prepare')}: folds and hours are counted from the prepared "
            "data. Run `lakd prepare` with this experiment first."
        )
    graphs = [build_run_graph(cell) for cell in _cell_configs(config, _folds(config))]
    loaded: dict[int, Manifest] = {}
    for graph in graphs:
        if graph.config.fold not in loaded:
            loaded[graph.config.fold] = manifests.load_manifest(graph.config)
        for run in graph.all_runs:
            check_sources(graph, loaded[graph.config.fold], run)
    tasks = stage_tasks(graphs, "train")
    epoch_seconds = {task.run.id: _epoch_seconds(loaded[task.config.fold], task.run) for task in tasks}
    train_seconds = {task.run.id: epoch_seconds[task.run.id] * task.run.recipe.optim.epochs for task in tasks}
    return GridPlan(
        config,
        tuple(graphs),
        tuple(tasks),
        train_seconds,
        runs_without_sharing=sum(_num_own_runs(graph) for graph in graphs),
        teacher_inference_seconds=sum(
            _teacher_inference_seconds(loaded[graph.config.fold], graph) for graph in _one_per_fold_and_seed(graphs)
        ),
        selected_on_test=_find_selected_on_test(config, loaded),
        online_teacher_seconds=sum(train_seconds[task.run.id] * len(task.run.teachers) for task in tasks),
    )


def _find_selected_on_test(config: Experiment, manifests_by_fold: Mapping[int, Manifest]) -> dict[int, list[str]]:
    found = {
        fold: manifest.speaker_exposure(config.speakers_selected_on).shared_speakers(manifest.evaluated_data["test"])
        for fold, manifest in manifests_by_fold.items()
    }
    return {fold: names for fold, names in sorted(found.items()) if names}


def _cell_configs(config: Experiment, folds: Sequence[int]) -> Iterable[Experiment]:
    """Yield the experiment with every seed, fold and variant; the first variant is the experiment's own settings."""
    base = config.model_copy(update={"grid": config.grid.model_copy(update={"variants": {}})})
    variants = [base, *(with_variant(config, name) for name in config.grid.variants)]
    for seed, fold, variant in itertools.product(config.grid.seeds, folds, variants):
        yield variant.model_copy(update={"fold": fold, "seed": seed})


def _folds(config: Experiment) -> tuple[int, ...]:
    if config.grid.folds is not None:
        return config.grid.folds
    return tuple(range(splits.count_folds(manifests.read_manifest_table(config), config)))


def _num_own_runs(graph: RunGraph) -> int:
    """Return the number of runs of a cell by itself; variants change students only."""
    runs = graph.all_runs if graph.config.variant is None else graph.trained_students
    return len(runs)


def _one_per_fold_and_seed(graphs: Sequence[RunGraph]) -> list[RunGraph]:
    """Return the last variant's cell of each fold and seed."""
    return list({graph.config.cell: graph for graph in graphs}.values())


def _epoch_seconds(manifest: Manifest, run: Run) -> float:
    rows = manifest.rows("train", run.languages)
    share = 1.0 if run.held_out_fold is None else 1 - 1 / run.held_out_fold.num_cross_fit_folds
    return share * float(manifest.num_samples_N[rows].sum()) / SAMPLE_RATE


def _teacher_inference_seconds(manifest: Manifest, graph: RunGraph) -> float:
    return len(graph.teachers) * float(manifest.num_samples_N[manifest.rows("train")].sum()) / SAMPLE_RATE


def format_plan(plan: GridPlan, throughput: float | None) -> str:
    """Return the plan as text for a terminal.

    Args:
        plan: the plan.
        throughput: audio-seconds per second of one worker group, for the cost; None: measured by finished runs.
    """
    kinds = {
        "teachers": [task for task in plan.tasks if task.run.stage == "teachers" and task.run.held_out_fold is None],
        "teachers for cross-fitting": [task for task in plan.tasks if task.run.held_out_fold is not None],
        "students": [task for task in plan.tasks if task.run.stage == "distill"],
    }
    done = {task.run.id for task in plan.tasks if task.is_finished}
    folds, seeds = (len({getattr(graph.config, name) for graph in plan.graphs}) for name in ("fold", "seed"))
    variants = len({graph.config.variant for graph in plan.graphs})
    lines = [
        f"plan: {folds} folds x {seeds} seeds x {variants} settings of the students = {len(plan.graphs)} cells, "
        f"{len(plan.tasks)} runs" + _sharing_note(plan),
        f"  {'':<28}{'runs':>6}{'done':>6}{'audio-hours':>14}{'left':>10}",
    ]
    for kind, tasks in kinds.items():
        unfinished = [task for task in tasks if task.run.id not in done]
        hours, hours_left = (_audio_seconds(plan, selection, ()) / 3600 for selection in (tasks, unfinished))
        lines.append(f"  {kind:<28}{len(tasks):>6}{len(tasks) - len(unfinished):>6}{hours:>14.1f}{hours_left:>10.1f}")
    lines.append(
        f"  teacher logits are computed once, for at most {plan.teacher_inference_seconds / 3600:.1f} audio-hours; in "
        f"every step it would be {plan.online_teacher_seconds / 3600:.1f}"
    )
    lines += _selection_note(plan)
    return "\n".join([*lines, "  " + _format_cost(plan, _audio_seconds(plan, plan.tasks, done), throughput)])


def _audio_seconds(plan: GridPlan, tasks: Sequence[TrainingTask], excluded: Collection[str]) -> float:
    return sum(plan.train_seconds[task.run.id] for task in tasks if task.run.id not in excluded)


def _sharing_note(plan: GridPlan) -> str:
    if plan.runs_without_sharing == len(plan.tasks):
        return ""
    return f" (not {plan.runs_without_sharing}: runs that several cells need are trained once)"


def _selection_note(plan: GridPlan) -> list[str]:
    """Return a line about folds with test speakers whose results selected the settings, if there are any."""
    if not plan.selected_on_test:
        return []
    unaffected = sorted({graph.config.fold for graph in plan.graphs} - plan.selected_on_test.keys())
    advice = f"; without them: --set grid.folds={unaffected}" if unaffected else ""
    return [f"  {_describe_selection(plan.config, plan.selected_on_test)}{advice}"]


def log_settings_selection(config: Experiment) -> None:
    """Warn if the settings of an experiment were selected on people who are test speakers in its fold."""
    if not config.selected_on:
        return
    if found := _find_selected_on_test(config, {config.fold: manifests.load_manifest(config)}):
        logger.warning(_describe_selection(config, found))


def _describe_selection(config: Experiment, selected_on_test: Mapping[int, Sequence[str]]) -> str:
    searches = ", ".join(f"{item.experiment} (fold {item.fold})" for item in config.selected_on)
    folds = "; ".join(f"fold {fold}: {', '.join(names)}" for fold, names in selected_on_test.items())
    return (
        f"the settings were selected by {searches} on dev speakers who are test speakers here ({folds}): results of "
        "students in these folds and over all folds are optimistic and have the mark †"
    )


def _format_cost(plan: GridPlan, remaining_seconds: float, throughput: float | None) -> str:
    """Return the device-hours of the remaining runs as a sentence."""
    train = plan.config.train
    unit = {"auto": "device", "cpu": "CPU", "cuda": "GPU"}[train.device]
    source = "as given"
    if throughput is None:
        throughput = _measure_throughput(plan)
        source = "the median of the finished runs' epochs"
    if throughput is None:
        return (
            f"{unit}-hours: not known before a run is finished; give --throughput AUDIO_SECONDS_PER_SECOND of one run"
        )
    hours = remaining_seconds / throughput / 3600
    device_hours = hours * train.workers * (train.reserved_gpus or 1)
    return (
        f"left: {device_hours:.1f} {unit}-hours, {hours / train.parallel_runs:.1f} hours with "
        f"{train.parallel_runs} parallel runs, at {throughput:.0f} audio-seconds per second and run ({source}); "
        "evaluation and start-up are not included"
    )


def _measure_throughput(plan: GridPlan) -> float | None:
    speeds = [
        epoch["audio_seconds_per_second"]
        for task in plan.tasks
        if task.is_finished
        for epoch in RunState.read(task.run.folder(task.config)).metrics
    ]
    return float(np.median(speeds)) if speeds else None
