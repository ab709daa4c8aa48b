"""The inputs of a training run: digests for its record, the provenance of its teachers, and the teacher logits.

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
from lakd_ray.data.provenance import Provenance
from lakd_ray.errors import ConfigError, StageError
from lakd_ray.inference import logits_cache
from lakd_ray.models.checkpoint import METADATA_FILE, read_metadata
from lakd_ray.models.external_teacher import is_lakd_checkpoint
from lakd_ray.runs import record
from lakd_ray.runs import state as states
from lakd_ray.runs.graph import Run, RunGraph
from lakd_ray.runs.layout import logits_folder

Logits = npt.NDArray[np.float32]
TeacherCheckpoints = Mapping[str, str | ExternalTeacherConfig]
"""Checkpoint of each teacher by id: a location, or the settings of an external teacher."""
ComputeLogits = Callable[[RowIndices, TeacherCheckpoints], Mapping[str, Logits]]
Broadcast = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class RunInputs:
    """A run with the inputs that define its weights and the provenance of its teachers."""

    run: Run
    fingerprint: dict[str, Any]
    teacher_provenance: tuple[Provenance, ...]


@dataclass(frozen=True, eq=False)
class TeacherQuery:
    """Training rows whose logits a model computes for one index of a run's teacher axis."""

    teacher_index: int
    model_id: str
    """Id of the model: the teacher, or the same teacher trained without these rows' speakers."""
    rows: RowIndices


def resolve_inputs(graph: RunGraph, manifest: Manifest, run: Run) -> RunInputs:
    """Resolve the inputs of a run, whose teachers must be trained.

    The run inherits the provenance of its teachers, and of the checkpoint it starts from if this project wrote it.

    Raises:
        StageError: a teacher is not trained.
        DataLeakageError: a teacher, or that checkpoint, has seen data on which the run is evaluated.
    """
    checkpoints = {name: states.find_best_checkpoint(graph.get(name), graph.config) for name in run.dependencies}
    checkpoints |= _initial_checkpoint(run)
    external = {name: teacher for name, teacher in graph.external_teachers.items() if name in run.teachers}
    provenance = {name: read_metadata(location).provenance for name, location in checkpoints.items()}
    provenance |= {name: _external_provenance(teacher, manifest) for name, teacher in external.items()}
    evaluated = {split: manifest.data_exposure(manifest.rows(split)) for split in ("dev", "test")}
    for name, parent in provenance.items():
        parent.check_leakage(model=name, dev=evaluated["dev"], test=evaluated["test"])
    inputs = {"manifest": manifest.digest}
    inputs |= {name: logits_cache.checkpoint_fingerprint(location) for name, location in checkpoints.items()}
    inputs |= {name: logits_cache.checkpoint_fingerprint(teacher) for name, teacher in external.items()}
    if run.teachers:
        train = manifest.table.select(["utterance", "audio_sha256"]).take(manifest.rows("train", run.languages))
        inputs["queried rows"] = record.digest(train.to_pydict())
    return RunInputs(run, states.fingerprint_inputs(run, graph.config, inputs), tuple(provenance.values()))


def plan_teacher_queries(graph: RunGraph, manifest: Manifest, run: Run) -> list[TeacherQuery]:
    """Plan which model computes the logits of which training rows: each teacher once for each row.

    With cross-fitting, the rows of speakers that a teacher is trained on are assigned to the same teacher trained
    without these speakers.
    """
    all_rows = manifest.rows("train", run.languages)
    num_folds = run.loss.num_cross_fit_folds if run.loss else 0
    queries = []
    for index, name in enumerate(run.teachers):
        if not num_folds or name not in graph:  # an external teacher computes all rows
            queries.append(TeacherQuery(index, name, all_rows))
            continue
        teacher = graph.get(name)
        seen_rows = manifest.rows("train", teacher.languages)
        fold_of_row = manifest.speaker_folds(seen_rows, num_folds)
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
    """Compute and cache the teacher logits of these runs that are not cached yet.

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
            logits_cache.write_logits(folder, name, manifest, rows, logits_RC)


def load_logits(graph: RunGraph, manifest: Manifest, run: Run) -> Logits:
    """Load the cached logits of a run's teachers.

    Returns:
        Logits of shape [N, K, C]; NaN in rows that the run is not trained on.

    Raises:
        StageError: logits are missing.
    """
    num_classes = len(run.emotions)
    checkpoints = _resolve_checkpoints(graph, [*run.dependencies, *run.teachers])
    logits_NKC = np.full((len(manifest.table), len(run.teachers), num_classes), np.nan, dtype=np.float32)
    for query in plan_teacher_queries(graph, manifest, run):
        folder = _model_logits_folder(graph.config, query.model_id, checkpoints[query.model_id])
        logits_RC = logits_cache.read_logits(folder, manifest, num_classes)[query.rows]
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

    The models of a group share one pass over the audio; external teachers have passes of their own.
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
        cached_NC = logits_cache.read_logits(folder, manifest, len(graph.config.emotions))
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


def _external_provenance(teacher: ExternalTeacherConfig, manifest: Manifest) -> Provenance:
    """Return the data that an external teacher has seen: from the configuration, from its metadata, or unknown.

    Raises:
        ConfigError: `trained_on` names a corpus or a speaker that the manifest does not have.
    """
    if teacher.trained_on is None:
        if is_lakd_checkpoint(teacher):
            return read_metadata(teacher.checkpoint).provenance
        return Provenance(unknown=frozenset({teacher.name}))
    corpora, speakers = (np.asarray(manifest.table[name].to_pylist()) for name in ("corpus", "speaker"))
    unknown = [name for name in teacher.trained_on if name not in corpora and name not in speakers]
    if unknown:
        raise ConfigError(
            f"external teacher {teacher.name}: `trained_on` lists {', '.join(unknown)}, which is neither a corpus "
            f"({', '.join(np.unique(corpora))}) nor a speaker (`corpus:speaker`) of this experiment. Correct it."
        )
    seen = manifest.data_exposure(
        np.flatnonzero(np.isin(corpora, teacher.trained_on) | np.isin(speakers, teacher.trained_on))
    )
    return Provenance(trained_on=seen, selected_on=seen)


def _initial_checkpoint(run: Run) -> dict[str, str]:
    """Return the checkpoint that the run starts from, if it has metadata with its provenance."""
    location = run.recipe.model.pretrained
    return {location: location} if location and storage.exists(storage.join(location, METADATA_FILE)) else {}
