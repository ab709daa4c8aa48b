"""What a run needs besides its own settings: the digests of its inputs, and its teachers' record and logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lakd_ray import records, storage
from lakd_ray.config import Experiment
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.models.checkpoint import CARD, read_card_at
from lakd_ray.provenance import Provenance
from lakd_ray.runs import Run, teacher_runs
from lakd_ray.train import state as states

Compute = Callable[[Rows, Mapping[str, str]], Mapping[str, npt.NDArray[np.float32]]]
Agree = Callable[[Callable[[], dict[str, str]]], dict[str, str]]


@dataclass(frozen=True)
class Job:
    """A run with what makes it and what its teachers have seen."""

    run: Run
    made_by: dict[str, Any]
    parents: tuple[Provenance, ...]


def job(config: Experiment, manifest: Manifest, run: Run) -> Job:
    """Look a run's inputs up; its teachers must be trained.

    What its teachers have seen, and the checkpoint it starts from if that is one of this project's, counts as seen.

    Raises:
        StageError: a teacher is not trained.
        HygieneError: a teacher, or that checkpoint, has seen what the run will be judged on.
    """
    checkpoints = _checkpoints(config, [run])
    ancestors = {**checkpoints, **_initial_checkpoint(run)}
    judged = {split: manifest.seen(manifest.rows(split)) for split in ("dev", "test")}
    parents = []
    for name, location in ancestors.items():
        parents.append(read_card_at(location).provenance)
        parents[-1].check(model=name, dev=judged["dev"], test=judged["test"])
    inputs: dict[str, str] = {
        name: records.digest(_logits_made_by(manifest, location)) for name, location in checkpoints.items()
    }
    for name, location in _initial_checkpoint(run).items():
        inputs[name] = records.digest(storage.read_json(storage.join(location, storage.SEAL)))
    return Job(run, states.made_by(run, config, {"manifest": manifest.digest, **inputs}), tuple(parents))


def store_logits(
    config: Experiment,
    manifest: Manifest,
    runs: Sequence[Run],
    compute: Compute,
    agree: Agree = lambda decide: decide(),
) -> None:
    """Have the logits of these runs' teachers on the training rows computed and stored, where they are not yet.

    Args:
        compute: (rows, checkpoints) -> logits [len(rows), C] of each; nothing on ranks that are not to write them.
        agree: makes all ranks of a worker group go by what the first finds.

    Raises:
        StageError: a teacher is not trained, or logits of another teacher are stored under its name.
    """
    from lakd_ray.infer import batch  # needs Ray Data; looking a job up does not

    checkpoints = _checkpoints(config, runs)
    folder, rows = logits_folder(config), manifest.rows("train")
    made_by = {name: _logits_made_by(manifest, location) for name, location in checkpoints.items()}
    missing = agree(lambda: batch.not_stored(checkpoints, folder, made_by))
    if missing:
        batch.store(compute(rows, missing), manifest, rows, folder, made_by)


def logits_folder(config: Experiment) -> str:
    """Where teachers' logits are stored."""
    return storage.join(config.stage_folder("teachers"), "logits")


def _checkpoints(config: Experiment, runs: Sequence[Run]) -> dict[str, str]:
    """Checkpoint of every teacher of these runs, in the order of the runs' teacher axes."""
    known = {run.id: run for run in teacher_runs(config)}
    names = dict.fromkeys(name for run in runs for name in run.teachers)
    return {name: states.best_checkpoint(known[name], config) for name in names}


def _initial_checkpoint(run: Run) -> dict[str, str]:
    """The checkpoint that the run starts from, if it has a card that says what it has seen."""
    location = run.recipe.model.pretrained
    return {location: location} if location and storage.exists(storage.join(location, CARD)) else {}


def _logits_made_by(manifest: Manifest, checkpoint: str) -> Mapping[str, Any]:
    rows = manifest.rows("train")
    return {
        "checkpoint": storage.read_json(storage.join(checkpoint, storage.SEAL)),
        "utterances": records.digest(manifest.table["utterance"].take(rows).to_pylist()),
        "audio": records.digest(manifest.table["audio_sha256"].take(rows).to_pylist()),
    }
