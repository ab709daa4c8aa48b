"""Resolve the inputs of a training run before it starts, and reject models that were trained on its evaluation data.

The inputs are the digests for the run's record and the data on which its teachers and its initial checkpoint were
trained and selected.
"""

import logging
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import CorpusConfig, Experiment
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.provenance import RETRAIN, DataExposure, Provenance
from lakd_ray.errors import ConfigError, DataError
from lakd_ray.inference import logits_cache
from lakd_ray.models.checkpoint import METADATA_FILE, read_metadata
from lakd_ray.models.known_pretrained import LABELED_DATASETS
from lakd_ray.models.min_length import min_samples_of_model
from lakd_ray.models.origin import read_checkpoint_record, read_origin
from lakd_ray.runs import record
from lakd_ray.runs import state as states
from lakd_ray.runs.graph import Run, RunGraph

logger = logging.getLogger(__name__)

_MAX_LISTED = 3  # clips in an error message


@dataclass(frozen=True)
class RunInputs:
    """A run with the inputs that define its weights and the provenance of its teachers."""

    run: Run
    fingerprint: dict[str, Any]
    teacher_provenance: tuple[Provenance, ...]


def resolve_inputs(graph: RunGraph, manifest: Manifest, run: Run) -> RunInputs:
    """Resolve the inputs of a run whose teachers are trained.

    The run inherits the provenance of its teachers, and of the model that it starts from.

    Raises:
        StageError: a teacher is not trained.
        ConfigError: `trained_on` names a corpus or a speaker that the manifest does not have.
        DataLeakageError: a teacher, or that model, has seen data on which the run is evaluated.
        DataError: a teacher has other classes than the run.
    """
    checkpoints = {name: states.find_best_checkpoint(graph.get(name), graph.config) for name in run.dependencies}
    metadata = {name: read_metadata(location) for name, location in checkpoints.items()}
    for teacher in metadata.values():
        teacher.class_indices(run.emotions)  # rejects other classes before anything runs
    teachers = {name: teacher.provenance for name, teacher in metadata.items()}
    provenance = teachers | check_sources(graph, manifest, run)
    _check_leakage(teachers, manifest)
    checkpoints |= _initial_checkpoint(run)
    external = {name: teacher for name, teacher in graph.external_teachers.items() if name in run.teachers}
    inputs = {"manifest": manifest.digest}
    inputs |= {name: logits_cache.checkpoint_fingerprint(location) for name, location in checkpoints.items()}
    inputs |= {name: logits_cache.checkpoint_fingerprint(teacher) for name, teacher in external.items()}
    if run.teachers:
        train = manifest.table.select(["utterance", "audio_sha256"]).take(manifest.rows("train", run.languages))
        inputs["queried rows"] = record.digest(train.to_pydict())
    inherited = [
        *provenance.values(),
        *([_settings_provenance(graph.config, manifest)] if run.stage != "teachers" else []),
    ]
    return RunInputs(run, states.fingerprint_inputs(run, graph.config, inputs), tuple(inherited))


def _settings_provenance(config: Experiment, manifest: Manifest) -> Provenance:
    """Return the dev speakers of the searches that selected the settings of the students."""
    return Provenance(settings_selected_on=manifest.speaker_exposure(config.speakers_selected_on))


def check_sources(graph: RunGraph, manifest: Manifest, run: Run) -> dict[str, Provenance]:
    """Check the models from outside the experiment that a run needs, before its teachers are trained.

    Returns:
        The training data of these models, by name.

    Raises:
        DataError: clips are shorter than the encoder of the run accepts.
        ConfigError: `trained_on` names a corpus or a speaker that the manifest does not have.
        DataLeakageError: one of them has seen data on which the run is evaluated.
    """
    _check_clip_lengths(graph, manifest, run)
    provenance = _source_provenance(graph, manifest, run)
    for name, source in provenance.items():
        _check_dataset_names(name, source, graph.config, manifest)
    _check_leakage(
        provenance,
        manifest,
        "Choose a different model, or declare its actual training data with `trained_on`.",
    )
    return provenance


def _check_clip_lengths(graph: RunGraph, manifest: Manifest, run: Run) -> None:
    """Check that the encoder has at least one frame for every clip that it is trained or evaluated on.

    Raises:
        DataError: some clips are shorter.
    """
    needed = min_samples_of_model(run.recipe.model)
    rows = np.concatenate([manifest.rows(split, run.languages) for split in ("train", "dev", "test")])
    short = rows[manifest.num_samples_N[rows] < needed]
    if not len(short):
        return
    clips = [f"{manifest.ids[row]} ({manifest.num_samples_N[row] / SAMPLE_RATE:.4f} s)" for row in short[:_MAX_LISTED]]
    more = f" and {len(short) - _MAX_LISTED} more" if len(short) > _MAX_LISTED else ""
    seconds = f"{needed / SAMPLE_RATE:g}"
    raise DataError(
        f"{run.id}: {len(short)} clips are shorter than its encoder accepts, {seconds} s ({needed} samples): "
        f"{', '.join(clips)}{more}. Set `audio.min_seconds` to {seconds} or more (now "
        f"{graph.config.audio.min_seconds:g}), with a new `name`, and run `lakd prepare` again"
    )


def _source_provenance(graph: RunGraph, manifest: Manifest, run: Run) -> dict[str, Provenance]:
    """Return the training data of the models from outside the experiment that a run needs, by name.

    They are the model that it starts from and its external teachers.

    Raises:
        ConfigError: `trained_on` names a corpus or a speaker that the manifest does not have.
    """
    sources = {}
    model = run.recipe.model
    if model.pretrained is not None:
        sources[model.pretrained] = _describe_source(
            "model.pretrained", model.pretrained, model.revision, model.trained_on, None, manifest
        )
    for name, teacher in graph.external_teachers.items():
        if name in run.teachers:
            sources[name] = _describe_source(
                f"external teacher {teacher.name}",
                teacher.checkpoint,
                teacher.revision,
                teacher.trained_on,
                teacher.name,
                manifest,
            )
    return sources


def _check_dataset_names(model: str, provenance: Provenance, config: Experiment, manifest: Manifest) -> None:
    """Check that a corpus of a generic importer can be compared with the datasets that a model was trained on.

    Raises:
        ConfigError: the corpus seems to be one of these datasets but has no `dataset`, or it has other speaker names.
    """
    trained_on = provenance.trained_on.datasets
    labeled = {name.partition(":")[0] for name in trained_on} & LABELED_DATASETS
    for corpus in config.corpora:
        similar = [name for name in sorted(labeled) if _is_named(corpus, name)]
        if similar and not corpus.public_dataset:
            raise ConfigError(
                f"{model} was trained on {similar[0]}, and corpus {corpus.name} ({corpus.root}) seems to be a copy: "
                f"set its `dataset: {similar[0]}`, or if it is a different dataset, the name of that one."
            )
        listed = {name for name in trained_on if name.partition(":")[0] == corpus.public_dataset and ":" in name}
        if listed and corpus.is_generic and not listed & manifest.dataset_speakers(corpus.name):
            raise ConfigError(
                f"{model} was trained on speakers of {corpus.public_dataset}, such as {min(listed)}, but corpus "
                f"{corpus.name} has none with these names: its test speakers may be the same people. Rename its "
                "speakers, or declare with `trained_on` of the model which of them it was trained on."
            )


def _is_named(corpus: CorpusConfig, dataset: str) -> bool:
    """Return whether the name or the location of a corpus contains the name of a dataset as a word."""
    word = dataset.replace("_", "[^a-z0-9]?")
    return re.search(f"(?<![a-z]){word}(?![a-z])", f"{corpus.name} {corpus.root}".lower()) is not None


def _check_leakage(provenance: dict[str, Provenance], manifest: Manifest, advice: str = RETRAIN) -> None:
    dev, test = manifest.evaluated_data["dev"], manifest.evaluated_data["test"]
    for name, parent in provenance.items():
        parent.check_leakage(model=name, dev=dev, test=test, advice=advice)


def _describe_source(
    label: str,
    location: str,
    revision: str | None,
    trained_on: tuple[str, ...] | None,
    name: str | None,
    manifest: Manifest,
) -> Provenance:
    """Return the data that a model has seen: declared, from its own record, from the list of known models, or unknown.

    A declaration is about the corpora of the experiment: it replaces what the list states about them, and adds to what
    a checkpoint of this project records.

    Args:
        label: what the model is, for error messages.
        location, revision, name: see `lakd_ray.models.origin.read_origin`.
        trained_on: corpora and speakers that the configuration declares; None without a declaration.
        manifest: the experiment's data.

    Raises:
        ConfigError: `trained_on` names a corpus or a speaker that the manifest does not have.
    """
    if trained_on is None:
        return read_origin(location, revision, name=name)
    corpora, speakers = (np.asarray(manifest.table[column].to_pylist()) for column in ("corpus", "speaker"))
    first = {other: name for name, others in manifest.other_names.items() for other in others}
    trained_on = tuple(first.get(entry, entry) for entry in trained_on)
    unknown = [entry for entry in trained_on if entry not in corpora and entry not in speakers]
    if unknown:
        raise ConfigError(
            f"{label}: `trained_on` lists {', '.join(unknown)}, but this experiment has "
            f"neither corpora ({', '.join(np.unique(corpora))}) nor speakers (`corpus:speaker`) with these names. "
            "Correct them."
        )
    seen = manifest.data_exposure(np.flatnonzero(np.isin(corpora, trained_on) | np.isin(speakers, trained_on)))
    declared = Provenance(trained_on=seen, selected_on=seen)
    if recorded := read_checkpoint_record(location, revision):
        return declared.inherit([recorded])
    other_datasets = {
        dataset
        for dataset in read_origin(location, revision).trained_on.datasets
        if dataset.partition(":")[0] not in manifest.datasets.values()
    }
    return declared.inherit([Provenance(DataExposure(datasets=frozenset(other_datasets)))])


def _initial_checkpoint(run: Run) -> dict[str, str]:
    """Return the checkpoint of this project that the run starts from, if it does."""
    location = run.recipe.model.pretrained
    return {location: location} if location and storage.exists(storage.join(location, METADATA_FILE)) else {}
