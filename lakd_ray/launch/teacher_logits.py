"""Compute, cache and load the logits of a run's teachers on its training rows.

Shape suffixes: N utterances of the manifest, R selected rows, K teachers, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lakd_ray import storage
from lakd_ray.config import Experiment, ExternalTeacherConfig
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.errors import StageError
from lakd_ray.inference import logits_cache
from lakd_ray.runs import state as states
from lakd_ray.runs.graph import Run, RunGraph
from lakd_ray.runs.layout import logits_folder

Logits = npt.NDArray[np.float32]
TeacherCheckpoints = Mapping[str, str | ExternalTeacherConfig]
"""Checkpoint of each teacher by id: a location, or the settings of an external teacher."""
ComputeLogits = Callable[[RowIndices, TeacherCheckpoints], Mapping[str, Logits]]
Broadcast = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True, eq=False)
class TeacherQuery:
    """A request for the logits of one model on some training rows; they fill one index of the run's teacher axis."""

    teacher_index: int
    model_id: str
    """Id of the model: the teacher, or the same teacher trained without these rows' speakers."""
    rows: RowIndices


def plan_teacher_queries(graph: RunGraph, manifest: Manifest, run: Run) -> list[TeacherQuery]:
    """Assign each pair of a teacher and a training row to exactly one model that computes its logits.

    With cross-fitting, the rows of speakers that a teacher is trained on are assigned to the same teacher trained
    without these speakers.
    """
    all_rows = manifest.rows("train", run.languages)
    num_cross_fit_folds = run.loss.num_cross_fit_folds if run.loss else 0
    queries = []
    for index, name in enumerate(run.teachers):
        if not num_cross_fit_folds or name not in graph:  # an external teacher computes all rows
            queries.append(TeacherQuery(index, name, all_rows))
            continue
        teacher = graph.get(name)
        seen_rows = manifest.rows("train", teacher.languages)
        fold_of_row = manifest.speaker_folds(seen_rows, num_cross_fit_folds)
        queries.append(TeacherQuery(index, name, np.setdiff1d(all_rows, seen_rows)))
        queries += [
            TeacherQuery(index, model.id, np.intersect1d(all_rows, seen_rows[fold_of_row == model.held_out_fold.index]))
            for model in map(graph.get, run.dependencies)
            if model.held_out_fold and model.languages == teacher.languages
        ]
    return [query for query in queries if len(query.rows)]


def ensure_logits(
    graph: RunGraph,
    manifest: Manifest,
    runs: Sequence[Run],
    compute: ComputeLogits,
    broadcast: Broadcast = lambda decide: decide(),
) -> None:
    """Compute the missing teacher logits of the given runs and write them to the cache.

    Args:
        graph: the runs of the cell.
        manifest: the utterances.
        runs: runs whose teachers are trained.
        compute: (rows, checkpoints) -> logits of each model, shape [R, C]; empty on ranks that do not write them.
        broadcast: makes all ranks of a worker group use the result of the first rank.

    Raises:
        StageError: a teacher is not trained.
    """
    for rows, checkpoints in broadcast(lambda: _plan_inference_passes(graph, manifest, runs)):
        for name, logits_RC in compute(rows, checkpoints).items():
            folder = _model_logits_folder(graph.config, name, checkpoints[name])
            logits_cache.write_logits(folder, name, manifest, rows, graph.config.emotions, logits_RC)


def load_logits(graph: RunGraph, manifest: Manifest, run: Run) -> Logits:
    """Load the cached logits of a run's teachers.

    Returns:
        Logits of shape [N, K, C] in the order of the run's classes; NaN in rows that the run is not trained on.

    Raises:
        StageError: logits are missing.
    """
    checkpoints = _resolve_checkpoints(graph, [*run.dependencies, *run.teachers])
    logits_NKC = np.full((len(manifest.table), len(run.teachers), len(run.emotions)), np.nan, dtype=np.float32)
    for query in plan_teacher_queries(graph, manifest, run):
        folder = _model_logits_folder(graph.config, query.model_id, checkpoints[query.model_id])
        logits_RC = logits_cache.read_logits(folder, manifest, run.emotions)[query.rows]
        if missing := int(np.isnan(logits_RC).any(axis=1).sum()):
            raise StageError(f"{run.id}: {missing} of {len(logits_RC)} logits of {query.model_id} are not in {folder}")
        logits_NKC[query.rows, query.teacher_index] = logits_RC
    return logits_NKC


def _model_logits_folder(config: Experiment, model_id: str, checkpoint: str | ExternalTeacherConfig) -> str:
    return storage.join(logits_folder(config), model_id, logits_cache.checkpoint_fingerprint(checkpoint))


def _plan_inference_passes(
    graph: RunGraph, manifest: Manifest, runs: Sequence[Run]
) -> list[tuple[RowIndices, dict[str, str | ExternalTeacherConfig]]]:
    """Return the rows whose logits are not cached and the checkpoints that compute them, grouped by equal rows.

    The models of a group share one pass over the audio; external teachers have separate passes.
    """
    rows_by_model: dict[str, list[RowIndices]] = {}
    for run in runs:
        for query in plan_teacher_queries(graph, manifest, run):
            rows_by_model.setdefault(query.model_id, []).append(query.rows)
    checkpoints = _resolve_checkpoints(graph, list(rows_by_model))
    passes: dict[tuple[bytes, bool], tuple[RowIndices, dict[str, str | ExternalTeacherConfig]]] = {}
    for model, parts in rows_by_model.items():
        rows = np.unique(np.concatenate(parts))
        folder = _model_logits_folder(graph.config, model, checkpoints[model])
        cached_NC = logits_cache.read_logits(folder, manifest, graph.config.emotions)
        rows = rows[np.isnan(cached_NC[rows]).any(axis=1)]
        if len(rows):
            key = rows.tobytes(), isinstance(checkpoints[model], ExternalTeacherConfig)
            passes.setdefault(key, (rows, {}))[1][model] = checkpoints[model]
    return list(passes.values())


def _resolve_checkpoints(graph: RunGraph, names: Sequence[str]) -> dict[str, str | ExternalTeacherConfig]:
    """Return the checkpoint of each of these teachers."""
    return {
        name: graph.external_teachers.get(name) or states.find_best_checkpoint(graph.get(name), graph.config)
        for name in names
    }
