"""Resolve the inputs of a training run before it starts, and reject teachers trained on its evaluation data.

The inputs are the digests for the run's record and the data on which its teachers and its initial checkpoint were
trained and selected.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lakd_ray import storage
from lakd_ray.config import ExternalTeacherConfig
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.provenance import Provenance
from lakd_ray.errors import ConfigError
from lakd_ray.inference import logits_cache
from lakd_ray.models.checkpoint import METADATA_FILE, read_metadata
from lakd_ray.models.external_teacher import is_lakd_checkpoint
from lakd_ray.runs import record
from lakd_ray.runs import state as states
from lakd_ray.runs.graph import Run, RunGraph


@dataclass(frozen=True)
class RunInputs:
    """A run with the inputs that define its weights and the provenance of its teachers."""

    run: Run
    fingerprint: dict[str, Any]
    teacher_provenance: tuple[Provenance, ...]


def resolve_inputs(graph: RunGraph, manifest: Manifest, run: Run) -> RunInputs:
    """Resolve the inputs of a run whose teachers are trained.

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


def _external_provenance(teacher: ExternalTeacherConfig, manifest: Manifest) -> Provenance:
    """Return the data that an external teacher has seen: from the configuration, from its metadata, or unknown.

    Raises:
        ConfigError: `trained_on` names a corpus or a speaker that the manifest does not have.
    """
    if teacher.trained_on is None:
        if is_lakd_checkpoint(teacher):
            return read_metadata(teacher.checkpoint).provenance
        return Provenance(undisclosed_teachers=frozenset({teacher.name}))
    corpora, speakers = (np.asarray(manifest.table[name].to_pylist()) for name in ("corpus", "speaker"))
    unknown = [name for name in teacher.trained_on if name not in corpora and name not in speakers]
    if unknown:
        raise ConfigError(
            f"external teacher {teacher.name}: `trained_on` lists {', '.join(unknown)}, but this experiment has "
            f"neither corpora ({', '.join(np.unique(corpora))}) nor speakers (`corpus:speaker`) with these names. "
            "Correct them."
        )
    seen = manifest.data_exposure(
        np.flatnonzero(np.isin(corpora, teacher.trained_on) | np.isin(speakers, teacher.trained_on))
    )
    return Provenance(trained_on=seen, selected_on=seen)


def _initial_checkpoint(run: Run) -> dict[str, str]:
    """Return the checkpoint that the run starts from, if it has metadata with its provenance."""
    location = run.recipe.model.pretrained
    return {location: location} if location and storage.exists(storage.join(location, METADATA_FILE)) else {}
