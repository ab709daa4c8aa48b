"""What a run needs besides its own settings: the digests of its inputs, and its teachers' record and logits.

Shape suffixes: N utterances of the manifest, K teachers, C classes.
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
ComputeLogits = Callable[[RowIndices, TeacherCheckpoints], Mapping[str, Logits]]
Broadcast = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class RunInputs:
    """A run with what makes it and what its teachers have seen."""

    run: Run
    fingerprint: dict[str, Any]
    teacher_provenance: tuple[Provenance, ...]


@dataclass(frozen=True, eq=False)
class TeacherQuery:
    """Training rows that a teacher is asked about, for one place of a run's teacher axis."""

    teacher_index: int
    model_id: str
    """Id of the run that is asked."""
    rows: RowIndices


def resolve_inputs(graph: RunGraph, manifest: Manifest, run: Run) -> RunInputs:
    """Look a run's inputs up; its teachers must be trained.

    What its teachers have seen, and the checkpoint it starts from if that is one of this project's, counts as seen.

    Raises:
        StageError: a teacher is not trained.
        DataLeakageError: a teacher, or that checkpoint, has seen what the run will be judged on.
    """
    checkpoints = {name: states.find_best_checkpoint(graph.get(name), graph.config) for name in run.dependencies}
    initial = _initial_checkpoint(run)
    external = {name: teacher for name, teacher in graph.external_teachers.items() if name in run.teachers}
    judged = {split: manifest.data_exposure(manifest.rows(split)) for split in ("dev", "test")}
    parents = []
    for name, location in {**checkpoints, **initial}.items():
        parents.append(read_metadata(location).provenance)
        parents[-1].check_leakage(model=name, dev=judged["dev"], test=judged["test"])
    for name, teacher in external.items():
        parents.append(_external_provenance(teacher, manifest))
        parents[-1].check_leakage(model=name, dev=judged["dev"], test=judged["test"])
    train = manifest.table.select(["utterance", "audio_sha256"]).take(manifest.rows("train", run.languages))
    inputs = {"manifest": manifest.digest}
    inputs |= {
        name: logits_cache.checkpoint_fingerprint(location) for name, location in {**checkpoints, **initial}.items()
    }
    inputs |= {name: logits_cache.checkpoint_fingerprint(teacher) for name, teacher in external.items()}
    if run.teachers:
        inputs["queried rows"] = record.digest(train.to_pydict())
    return RunInputs(run, states.fingerprint_inputs(run, graph.config, inputs), tuple(parents))


def plan_teacher_queries(graph: RunGraph, manifest: Manifest, run: Run) -> list[TeacherQuery]:
    """Whom a run asks about which of its training rows: every teacher about each of them once.

    With cross-fitting a teacher is not asked about what it was trained on; one that was trained without it is.
    """
    every = manifest.rows("train", run.languages)
    parts = run.loss.num_cross_fit_folds if run.loss else 0
    found = []
    for index, name in enumerate(run.teachers):
        fitted = parts and name in graph  # an external teacher is queried about all rows
        own = manifest.rows("train", graph.get(name).languages) if fitted else every[:0]
        part_of = manifest.speaker_folds(own, parts) if fitted else own
        found.append(TeacherQuery(index, name, np.setdiff1d(every, own)))
        found += [
            TeacherQuery(index, asked.id, np.intersect1d(every, own[part_of == asked.held_out_fold.index]))
            for asked in map(graph.get, run.dependencies)
            if fitted and asked.held_out_fold and asked.languages == graph.get(name).languages
        ]
    return [question for question in found if len(question.rows)]


def ensure_logits(
    graph: RunGraph,
    manifest: Manifest,
    runs: Sequence[Run],
    compute: ComputeLogits,
    broadcast: Broadcast = lambda decide: decide(),
) -> None:
    """Have the teachers' logits that these runs need computed and kept, where they are not yet.

    Args:
        compute: (rows, checkpoints) -> logits [len(rows), C] of each; nothing on ranks that are not to write them.
        agree: makes all ranks of a worker group go by what the first finds.

    Raises:
        StageError: a teacher is not trained.
    """
    for rows, checkpoints in broadcast(lambda: _plan_inference_passes(graph, manifest, runs)):
        for name, logits_RC in compute(rows, checkpoints).items():
            logits_cache.write_logits(
                _model_logits_folder(graph.config, name, checkpoints[name]), name, manifest, rows, logits_RC
            )


def load_logits(graph: RunGraph, manifest: Manifest, run: Run) -> Logits:
    """Kept logits of a run's teachers, shape [N, K, C]; NaN on rows that it is not trained on.

    Raises:
        StageError: some are not there.
    """
    classes = len(run.emotions)
    checkpoints = _resolve_checkpoints(graph, [*run.dependencies, *run.teachers])
    logits_NKC = np.full((len(manifest.table), len(run.teachers), classes), np.nan, dtype=np.float32)
    for question in plan_teacher_queries(graph, manifest, run):
        folder = _model_logits_folder(graph.config, question.model_id, checkpoints[question.model_id])
        answers_RC = logits_cache.read_logits(folder, manifest, classes)[question.rows]
        if missing := int(np.isnan(answers_RC).any(axis=1).sum()):
            raise StageError(
                f"{run.id}: {missing} of {len(answers_RC)} logits of {question.model_id} are not in {folder}"
            )
        logits_NKC[question.rows, question.teacher_index] = answers_RC
    return logits_NKC


def _model_logits_folder(config: Experiment, model_id: str, checkpoint: str | ExternalTeacherConfig) -> str:
    return storage.join(logits_folder(config), model_id, logits_cache.checkpoint_fingerprint(checkpoint))


def _plan_inference_passes(
    graph: RunGraph, manifest: Manifest, runs: Sequence[Run]
) -> list[tuple[RowIndices, dict[str, str | ExternalTeacherConfig]]]:
    """Rows that are still to be asked about, and the checkpoints that are to be asked; one pass over the audio each."""
    wanted: dict[str, list[RowIndices]] = {}
    for run in runs:
        for question in plan_teacher_queries(graph, manifest, run):
            wanted.setdefault(question.model_id, []).append(question.rows)
    checkpoints = _resolve_checkpoints(graph, list(wanted))
    passes: dict[tuple[bytes, bool], tuple[RowIndices, dict[str, str | ExternalTeacherConfig]]] = {}
    for model, parts in wanted.items():
        rows = np.unique(np.concatenate(parts))
        known_NC = logits_cache.read_logits(
            _model_logits_folder(graph.config, model, checkpoints[model]), manifest, len(graph.config.emotions)
        )
        rows = rows[np.isnan(known_NC[rows]).any(axis=1)]
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
    """What a teacher from elsewhere has heard: as its card says, as is declared, or not known.

    Raises:
        ConfigError: it is declared to have heard something that is not in the manifest.
    """
    if teacher.trained_on is None:
        if is_lakd_checkpoint(teacher):
            return read_metadata(teacher.checkpoint).provenance
        return Provenance(unknown=frozenset({teacher.name}))
    corpora, speakers = (np.asarray(manifest.table[name].to_pylist()) for name in ("corpus", "speaker"))
    strange = [name for name in teacher.trained_on if name not in corpora and name not in speakers]
    if strange:
        raise ConfigError(
            f"teacher {teacher.name} is said to have heard {', '.join(strange)}, which is neither a corpus "
            f"({', '.join(np.unique(corpora))}) nor a speaker (`corpus:speaker`) of this experiment. Correct `trained_on`."
        )
    seen = manifest.data_exposure(
        np.flatnonzero(np.isin(corpora, teacher.trained_on) | np.isin(speakers, teacher.trained_on))
    )
    return Provenance(trained_on=seen, selected_on=seen)


def _initial_checkpoint(run: Run) -> dict[str, str]:
    """The checkpoint that the run starts from, if it has a card that says what it has seen."""
    location = run.recipe.model.pretrained
    return {location: location} if location and storage.exists(storage.join(location, METADATA_FILE)) else {}
