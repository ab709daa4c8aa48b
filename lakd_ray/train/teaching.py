"""What a run needs besides its own settings: the digests of its inputs, and its teachers' record and logits.

Shape suffixes: N utterances of the manifest, K teachers, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lakd_ray import records, storage
from lakd_ray.config import Brought, Experiment
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.errors import ConfigError, StageError
from lakd_ray.infer import kept
from lakd_ray.models.brought import is_ours
from lakd_ray.models.checkpoint import CARD, read_card_at
from lakd_ray.provenance import Provenance
from lakd_ray.runs import Run, brought_id, cross_fitted_runs, teacher_runs
from lakd_ray.train import state as states

Logits = npt.NDArray[np.float32]
Checkpoints = Mapping[str, str | Brought]
Compute = Callable[[Rows, Checkpoints], Mapping[str, Logits]]
Agree = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class Job:
    """A run with what makes it and what its teachers have seen."""

    run: Run
    made_by: dict[str, Any]
    parents: tuple[Provenance, ...]


@dataclass(frozen=True, eq=False)
class Question:
    """Training rows that a teacher is asked about, for one place of a run's teacher axis."""

    teacher: int
    model: str
    """Id of the run that is asked."""
    rows: Rows


def job(config: Experiment, manifest: Manifest, run: Run) -> Job:
    """Look a run's inputs up; its teachers must be trained.

    What its teachers have seen, and the checkpoint it starts from if that is one of this project's, counts as seen.

    Raises:
        StageError: a teacher is not trained.
        HygieneError: a teacher, or that checkpoint, has seen what the run will be judged on.
    """
    checkpoints = {name: states.best_checkpoint(needed, config) for name, needed in _runs(config, run.needs).items()}
    initial = _initial_checkpoint(run)
    brought = {name: one for name, one in _brought(config).items() if name in run.teachers}
    judged = {split: manifest.seen(manifest.rows(split)) for split in ("dev", "test")}
    parents = []
    for name, location in {**checkpoints, **initial}.items():
        parents.append(read_card_at(location).provenance)
        parents[-1].check(model=name, dev=judged["dev"], test=judged["test"])
    for name, one in brought.items():
        parents.append(_heard(one, manifest))
        parents[-1].check(model=name, dev=judged["dev"], test=judged["test"])
    train = manifest.table.select(["utterance", "audio_sha256"]).take(manifest.rows("train", run.languages))
    inputs = {"manifest": manifest.digest}
    inputs |= {name: kept.key_of(location) for name, location in {**checkpoints, **initial}.items()}
    inputs |= {name: kept.key_of(one) for name, one in brought.items()}
    if run.teachers:
        inputs["asked about"] = records.digest(train.to_pydict())
    return Job(run, states.made_by(run, config, inputs), tuple(parents))


def questions(config: Experiment, manifest: Manifest, run: Run) -> list[Question]:
    """Whom a run asks about which of its training rows: every teacher about each of them once.

    With cross-fitting a teacher is not asked about what it was trained on; one that was trained without it is.
    """
    by_id = {teacher.id: teacher for teacher in (*teacher_runs(config), *cross_fitted_runs(config))}
    every = manifest.rows("train", run.languages)
    parts = run.loss.parts if run.loss else 0
    found = []
    for index, name in enumerate(run.teachers):
        fitted = parts and name in by_id  # one from elsewhere is taken as it is
        own = manifest.rows("train", by_id[name].languages) if fitted else every[:0]
        part_of = manifest.parts(own, parts) if fitted else own
        found.append(Question(index, name, np.setdiff1d(every, own)))
        found += [
            Question(index, asked.id, np.intersect1d(every, own[part_of == asked.without.number]))
            for asked in (by_id[other] for other in run.needs)
            if fitted and asked.without and asked.languages == by_id[name].languages
        ]
    return [question for question in found if len(question.rows)]


def store_logits(
    config: Experiment,
    manifest: Manifest,
    runs: Sequence[Run],
    compute: Compute,
    agree: Agree = lambda decide: decide(),
) -> None:
    """Have the teachers' logits that these runs need computed and kept, where they are not yet.

    Args:
        compute: (rows, checkpoints) -> logits [len(rows), C] of each; nothing on ranks that are not to write them.
        agree: makes all ranks of a worker group go by what the first finds.

    Raises:
        StageError: a teacher is not trained.
    """
    for rows, checkpoints in agree(lambda: _missing(config, manifest, runs)):
        for name, logits_RC in compute(rows, checkpoints).items():
            kept.write(_folder(config, name, checkpoints[name]), name, manifest, rows, logits_RC)


def teacher_logits(config: Experiment, manifest: Manifest, run: Run) -> Logits:
    """Kept logits of a run's teachers, shape [N, K, C]; NaN on rows that it is not trained on.

    Raises:
        StageError: some are not there.
    """
    classes = len(run.emotions)
    checkpoints = _checkpoints(config, [*run.needs, *run.teachers])
    logits_NKC = np.full((len(manifest.table), len(run.teachers), classes), np.nan, dtype=np.float32)
    for question in questions(config, manifest, run):
        folder = _folder(config, question.model, checkpoints[question.model])
        answers_RC = kept.read(folder, manifest, classes)[question.rows]
        if missing := int(np.isnan(answers_RC).any(axis=1).sum()):
            raise StageError(f"{run.id}: {missing} of {len(answers_RC)} logits of {question.model} are not in {folder}")
        logits_NKC[question.rows, question.teacher] = answers_RC
    return logits_NKC


def logits_folder(config: Experiment) -> str:
    """Where teachers' logits are kept."""
    return storage.join(config.stage_folder("teachers"), "logits")


def _folder(config: Experiment, model: str, checkpoint: str | Brought) -> str:
    return storage.join(logits_folder(config), model, kept.key_of(checkpoint))


def _missing(
    config: Experiment, manifest: Manifest, runs: Sequence[Run]
) -> list[tuple[Rows, dict[str, str | Brought]]]:
    """Rows that are still to be asked about, and the checkpoints that are to be asked; one pass over the audio each."""
    wanted: dict[str, list[Rows]] = {}
    for run in runs:
        for question in questions(config, manifest, run):
            wanted.setdefault(question.model, []).append(question.rows)
    checkpoints = _checkpoints(config, list(wanted))
    passes: dict[tuple[bytes, bool], tuple[Rows, dict[str, str | Brought]]] = {}
    for model, parts in wanted.items():
        rows = np.unique(np.concatenate(parts))
        known_NC = kept.read(_folder(config, model, checkpoints[model]), manifest, len(config.emotions))
        rows = rows[np.isnan(known_NC[rows]).any(axis=1)]
        if len(rows):
            key = rows.tobytes(), isinstance(checkpoints[model], Brought)
            passes.setdefault(key, (rows, {}))[1][model] = checkpoints[model]
    return list(passes.values())


def _checkpoints(config: Experiment, names: Sequence[str]) -> dict[str, str | Brought]:
    """Checkpoint of each of these teachers."""
    brought = _brought(config)
    own = _runs(config, [name for name in names if name not in brought])
    trained: dict[str, str | Brought] = {name: states.best_checkpoint(run, config) for name, run in own.items()}
    return trained | {name: brought[name] for name in names if name in brought}


def _runs(config: Experiment, names: Sequence[str]) -> dict[str, Run]:
    known = {run.id: run for run in (*teacher_runs(config), *cross_fitted_runs(config))}
    return {name: known[name] for name in names}


def _brought(config: Experiment) -> dict[str, Brought]:
    return {brought_id(one): one for one in config.distill.brought}


def _heard(teacher: Brought, manifest: Manifest) -> Provenance:
    """What a teacher from elsewhere has heard: as its card says, as is declared, or not known.

    Raises:
        ConfigError: it is declared to have heard something that is not in the manifest.
    """
    if teacher.heard is None:
        if is_ours(teacher):
            return read_card_at(teacher.checkpoint).provenance
        return Provenance(unknown=frozenset({teacher.name}))
    corpora, speakers = (np.asarray(manifest.table[name].to_pylist()) for name in ("corpus", "speaker"))
    strange = [name for name in teacher.heard if name not in corpora and name not in speakers]
    if strange:
        raise ConfigError(
            f"teacher {teacher.name} is said to have heard {', '.join(strange)}, which is neither a corpus "
            f"({', '.join(np.unique(corpora))}) nor a speaker (`corpus:speaker`) of this experiment. Correct `heard`."
        )
    seen = manifest.seen(np.flatnonzero(np.isin(corpora, teacher.heard) | np.isin(speakers, teacher.heard)))
    return Provenance(trained_on=seen, selected_on=seen)


def _initial_checkpoint(run: Run) -> dict[str, str]:
    """The checkpoint that the run starts from, if it has a card that says what it has seen."""
    location = run.recipe.model.pretrained
    return {location: location} if location and storage.exists(storage.join(location, CARD)) else {}
