"""The evaluate stage writes the predictions of every model for the test utterances, one Parquet file per model.

Shape suffixes: R rows, C classes.
"""

import logging
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data import manifest as manifests
from lakd_ray.data.class_columns import PROBABILITY, class_columns
from lakd_ray.data.clusters import cluster_names
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.data.provenance import DataExposure
from lakd_ray.data.schema import LANGUAGE_CONDITIONS_SCHEMA, PREDICTIONS_SCHEMA, with_probabilities
from lakd_ray.errors import DataError
from lakd_ray.grouping import group_by_budget
from lakd_ray.inference.batch import InferenceResult, LanguageCondition, ModelQuery, run_batch_inference
from lakd_ray.inference.predictor import softmax
from lakd_ray.models import CheckpointMetadata
from lakd_ray.models.checkpoint import read_metadata
from lakd_ray.runs import record
from lakd_ray.runs.graph import Run, RunGraph
from lakd_ray.runs.layout import language_conditions_folder, predictions_folder
from lakd_ray.runs.state import find_best_checkpoint

_MAX_BYTES_IN_MEMORY = 6e9  # bytes of models in one worker
_EXTRA_CONDITIONS: tuple[LanguageCondition, ...] = ("identified", "unknown", "wrong")  # in addition to "given"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _EvaluatedModel:
    """A run to evaluate, with its checkpoint, and the configuration of its cell in the grid."""

    config: Experiment
    run: Run
    paradigm: str
    checkpoint: str

    @property
    def predictions_stem(self) -> str:
        """Path of the model's predictions, without the suffix."""
        return storage.join(predictions_folder(self.config), self.run.id)

    @cached_property
    def metadata(self) -> CheckpointMetadata:
        """Metadata of the checkpoint, which is read once."""
        return read_metadata(self.checkpoint)

    def probability_columns(self, logits_RC: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """Return the columns of the probabilities that the endpoint returns, calibrated on dev."""
        probabilities_RC = softmax(logits_RC / self.metadata.calibration_temperature)
        return class_columns(PROBABILITY, self.config.emotions, probabilities_RC)

    @property
    def extra_conditions(self) -> tuple[LanguageCondition, ...]:
        """Conditions of a language-aware student besides "given"; with one language there is no wrong language."""
        if self.run.recipe.model.language_aware is None:
            return ()
        has_wrong = len(self.config.languages) > 1
        return tuple(condition for condition in _EXTRA_CONDITIONS if condition != "wrong" or has_wrong)

    @property
    def conditions(self) -> tuple[LanguageCondition, ...]:
        """All conditions the model is evaluated under."""
        return ("given", *self.extra_conditions)

    def scored_mask(self, manifest: Manifest, rows: RowIndices) -> npt.NDArray[np.bool_]:
        """Return which rows the model is scored on, shape [R]: monolingual students only on their own language."""
        if self.paradigm == "teacher" or self.run.setup != "monolingual":
            return np.ones(len(rows), dtype=bool)
        return np.isin(manifest.languages_N[rows].astype(str), self.run.languages)


def run(graph: RunGraph, *same_fold_graphs: RunGraph, exclude: Collection[str] = ()) -> str:
    """Predict the test rows with every teacher and student; models with complete predictions are skipped.

    Teachers are evaluated on every language, monolingual students on their own.

    Args:
        graph: the runs of a cell.
        same_fold_graphs: cells of the same fold with other seeds or variants, which are evaluated in the same pass.
        exclude: ids of runs that are not evaluated because they failed.

    Returns:
        The folder of the predictions.

    Raises:
        StageError: a run is not trained.
        DataLeakageError: a model was trained on or selected with a test speaker.
        DataError: the number of predictions differs from the manifest, or a model has other classes.
    """
    config = graph.config
    manifest = manifests.load_manifest(config)
    rows = manifest.rows("test")
    models = [model for cell in (graph, *same_fold_graphs) for model in _models_to_evaluate(cell, exclude)]
    models = list({model.predictions_stem: model for model in models}.values())
    fingerprint = {model.predictions_stem: _fingerprint(manifest, rows, model) for model in models}
    for model in models:
        model.metadata.class_indices(model.config.emotions)  # here, because Ray starts a failing actor again and again
        model.metadata.provenance.check_leakage(
            model=model.run.id, dev=DataExposure(), test=manifest.data_exposure(rows)
        )
    missing = [model for model in models if not _is_done(model, fingerprint[model.predictions_stem])]
    if not missing:
        logger.info("evaluate: already done: %s", predictions_folder(config))
    with storage.hold(config.folder) if missing else nullcontext():
        _predict_missing(config, manifest, rows, missing, fingerprint)
    if missing:
        names = list(dict.fromkeys(model.run.id for model in missing))
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        logger.info("evaluate: %d test utterances by %s -> %s", len(rows), shown, predictions_folder(config))
    return predictions_folder(config)


def _predict_missing(
    config: Experiment,
    manifest: Manifest,
    rows: RowIndices,
    missing: list[_EvaluatedModel],
    fingerprint: Mapping[str, dict[str, Any]],
) -> None:
    """Predict with models and write their predictions; as many models at a time as fit into a worker's memory."""
    for group in group_by_budget(missing, _checkpoint_bytes, _MAX_BYTES_IN_MEMORY):
        queries = {
            f"{model.predictions_stem} {condition}": ModelQuery(model.checkpoint, condition)
            for model in group
            for condition in model.conditions
        }
        results = run_batch_inference(config, manifest, rows, queries, title="evaluate")
        for model in group:
            by_condition = {
                condition: results[f"{model.predictions_stem} {condition}"] for condition in model.conditions
            }
            _write_predictions(manifest, rows, model, by_condition, fingerprint[model.predictions_stem])


def _models_to_evaluate(graph: RunGraph, exclude: Collection[str]) -> list[_EvaluatedModel]:
    return [
        _EvaluatedModel(
            graph.config,
            run,
            run.paradigm if graph.is_student(run.id) else "teacher",
            find_best_checkpoint(run, graph.config),
        )
        for run in graph.evaluated
        if run.id not in exclude
    ]


def _checkpoint_bytes(model: _EvaluatedModel) -> int:
    checksums = storage.read_json(storage.join(model.checkpoint, storage.CHECKSUMS_FILE))
    return sum(entry["bytes"] for entry in checksums.values())


def _write_predictions(
    manifest: Manifest,
    rows: RowIndices,
    model: _EvaluatedModel,
    results: Mapping[LanguageCondition, InferenceResult],
    fingerprint: dict[str, Any],
) -> None:
    location = f"{model.predictions_stem}.parquet"
    table = _predictions_table(manifest, rows, model, results["given"].logits_RC)
    storage.write_table(location, table)
    _check_row_count(location, len(table))
    if model.extra_conditions:
        storage.write_table(
            _language_conditions_path(model), _language_conditions_table(manifest, rows, model, results)
        )
    record.mark_started(_record_folder(model), fingerprint)
    record.mark_finished(_record_folder(model), fingerprint, [])


def _record_folder(model: _EvaluatedModel) -> str:
    return storage.join(predictions_folder(model.config), "records", model.run.id)


def _is_done(model: _EvaluatedModel, fingerprint: dict[str, Any]) -> bool:
    """Return whether complete predictions are written, in files with the present columns and the model's classes."""
    written = {f"{model.predictions_stem}.parquet": PREDICTIONS_SCHEMA}
    if model.extra_conditions:
        written[_language_conditions_path(model)] = LANGUAGE_CONDITIONS_SCHEMA
    for file, schema in written.items():
        columns = set(with_probabilities(schema, model.config.emotions).names)
        if not storage.exists(file) or set(storage.read_schema(file).names) != columns:
            return False
    return record.is_done(_record_folder(model), fingerprint)


def _language_conditions_path(model: _EvaluatedModel) -> str:
    return storage.join(language_conditions_folder(model.config), f"{model.run.id}.parquet")


def _fingerprint(manifest: Manifest, rows: RowIndices, model: _EvaluatedModel) -> dict[str, Any]:
    return {
        "checkpoint": record.folder_fingerprint(model.checkpoint),
        "audio": record.digest(manifest.table["audio_sha256"].take(rows).to_pylist()),
        "columns": PREDICTIONS_SCHEMA.names,
        "clusters": record.digest(cluster_names(manifest.table.take(rows), model.config.corpora)),
        **(
            {"conditions": list(model.extra_conditions), "condition_columns": LANGUAGE_CONDITIONS_SCHEMA.names}
            if model.extra_conditions
            else {}
        ),
    }


def _predictions_table(
    manifest: Manifest, rows: RowIndices, model: _EvaluatedModel, logits_RC: npt.NDArray[np.float32]
) -> pa.Table:
    """Return the predictions of one model, see `lakd_ray.data.schema.PREDICTIONS_SCHEMA`."""
    run, scored_R = model.run, model.scored_mask(manifest, rows)
    part = manifest.table.take(rows[scored_R])
    count = len(part)
    settings = model.metadata.provenance.settings_selected_on
    if model.paradigm != "teacher":  # the run of an ft student can be that of a teacher, whose record has no selection
        settings |= manifest.speaker_exposure(model.config.speakers_selected_on)
    selected = settings.shared_speakers(manifest.data_exposure(rows[scored_R]))
    copied = ("utterance", "corpus", "language", "speaker", "sentence", "emotion")
    columns: dict[str, Any] = {
        **{name: part[name] for name in copied},
        "cluster": cluster_names(part, model.config.corpora),
        "sentence_in_train": manifest.sentence_in_train(rows[scored_R]),
        "fold": [model.config.fold] * count,
        "seed": [model.config.seed] * count,
        "paradigm": [model.paradigm] * count,
        "setup": [run.setup] * count,
        "variant": [run.variant] * count,
        "model": [run.id] * count,
        "undisclosed_models": [", ".join(sorted(model.metadata.provenance.undisclosed_models))] * count,
        "settings_selected_on": [", ".join(selected)] * count,
        **model.probability_columns(logits_RC[scored_R]),
    }
    schema = with_probabilities(PREDICTIONS_SCHEMA, model.config.emotions)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _language_conditions_table(
    manifest: Manifest, rows: RowIndices, model: _EvaluatedModel, results: Mapping[LanguageCondition, InferenceResult]
) -> pa.Table:
    """Return a student's predictions by condition, see `lakd_ray.data.schema.LANGUAGE_CONDITIONS_SCHEMA`."""
    scored_R = model.scored_mask(manifest, rows)
    part = manifest.table.select(["utterance", "corpus", "language", "emotion"]).take(rows[scored_R])
    trained = set(manifest.table["corpus"].take(manifest.rows("train", model.run.languages)).to_pylist())
    tables = []
    for condition, result in results.items():
        columns: dict[str, Any] = {
            **{column: part[column] for column in part.column_names},
            "corpus_in_train": [corpus in trained for corpus in part["corpus"].to_pylist()],
            "model": [model.run.id] * len(part),
            "condition": [condition] * len(part),
            "predicted_language": result.predicted_language_R[scored_R],
            **model.probability_columns(result.logits_RC[scored_R]),
        }
        schema = with_probabilities(LANGUAGE_CONDITIONS_SCHEMA, model.config.emotions)
        tables.append(pa.table({column: columns[column] for column in schema.names}, schema=schema))
    return pa.concat_tables(tables)


def _check_row_count(path: str, expected: int) -> None:
    count = len(storage.read_table(path, columns=["utterance"]))
    if count != expected:
        raise DataError(f"{path} holds {count} predictions, expected {expected}: delete it and evaluate again")
