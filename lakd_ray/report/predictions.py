"""Reading and validation of the predictions that evaluation writes.

Shapes: N predictions, C classes.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data.class_columns import PROBABILITY, read_class_columns
from lakd_ray.data.schema import PREDICTIONS_SCHEMA
from lakd_ray.errors import DataError, StageError
from lakd_ray.runs.graph import Run, RunGraph
from lakd_ray.runs.layout import predictions_folder

TEACHER = "teacher"
_PARADIGM_ORDER = (TEACHER, "ft", "kd", "mtkd")
_CONSTANT_COLUMNS = (
    "model",
    "paradigm",
    "setup",
    "variant",
    "undisclosed_models",
    "settings_selected_on",
    "fold",
    "seed",
)


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of one model for the test utterances of one cell, or of several models concatenated.

    A corpus with fewer folds than others repeats its folds, so several models of a setting can predict an utterance.
    """

    model: str
    paradigm: str
    setup: str
    variant: str | None
    undisclosed_models: str
    """Models that it started or learned from whose training data is not known, separated by commas."""
    settings_selected_on: str
    """Test speakers whose results selected its settings, separated by commas; usually empty."""
    fold: int
    seed: int
    trained_languages: tuple[str, ...]
    """Languages that it was trained on; empty if the experiment does not have the run."""
    digest: str
    """Hash of the file."""
    utterance_N: npt.NDArray[np.str_]
    fold_N: npt.NDArray[np.int64]
    """Fold of the model that made each prediction."""
    language_N: npt.NDArray[np.str_]
    speaker_N: npt.NDArray[np.str_]
    cluster_N: npt.NDArray[np.str_]
    """Independent unit of each utterance: its speaker, or the session in which speakers talk to each other."""
    sentence_in_train_N: npt.NDArray[np.object_]
    """Whether a train utterance has the same sentence: True, False, or None if unknown."""
    labels_N: npt.NDArray[np.int64]
    probabilities_NC: npt.NDArray[np.float64]

    @property
    def is_student(self) -> bool:
        """Whether it is a student, not a teacher."""
        return self.paradigm != TEACHER

    @cached_property
    def weight_N(self) -> npt.NDArray[np.float64]:
        """The n predictions of an utterance weigh 1/n each, so that every utterance weighs one."""
        _, index_N, counts = np.unique(self.utterance_N, return_inverse=True, return_counts=True)
        return np.asarray(1 / counts[index_N], dtype=np.float64)

    @property
    def num_utterances(self) -> int:
        """The number of distinct utterances with predictions."""
        return len(np.unique(self.utterance_N))

    @cached_property
    def languages(self) -> frozenset[str]:
        """The languages of its utterances, each once."""
        return frozenset(np.unique(self.language_N).tolist())

    def select_languages(self, languages: Sequence[str]) -> "Predictions":
        """Return the part with utterances in the given languages."""
        return self.take(np.flatnonzero(np.isin(self.language_N, list(languages))))

    def take(self, indices: npt.NDArray[np.integer[Any]]) -> "Predictions":
        """Return the predictions at these indices, in this order."""
        arrays: dict[str, Any] = {name: getattr(self, name)[indices] for name in _ARRAY_FIELDS}
        return replace(self, **arrays)


_MARK_FIELDS = ("undisclosed_models", "settings_selected_on")
_ARRAY_FIELDS = (
    *("utterance_N", "fold_N", "language_N", "speaker_N", "cluster_N"),
    *("sentence_in_train_N", "labels_N", "probabilities_NC"),
)


def concatenate_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate several predictions; all other fields except the names for marks are those of the first."""
    fields: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAY_FIELDS}
    fields |= {name: join_names(getattr(part, name) for part in parts) for name in _MARK_FIELDS}
    return replace(parts[0], **fields)


def join_names(lists: Iterable[str]) -> str:
    """Merge lists of names that are separated by commas."""
    return ", ".join(sorted({name for names in lists for name in names.split(", ")} - {""}))


def read_grid_predictions(
    config: Experiment, cells: Sequence[RunGraph], failed_runs: Collection[str] = ()
) -> list[Predictions]:
    """Read the predictions of all cells, each file once.

    Args:
        config: the experiment.
        cells: runs of each fold, seed and variant.
        failed_runs: ids of runs whose predictions may be missing.

    Raises:
        StageError: evaluation has not run, or predictions of a student that did not fail are missing.
        DataError: a file is invalid, or models of a cell were evaluated on different utterances.
    """
    files: dict[str, Predictions] = {}  # by location
    for cell in cells:
        _read_cell(cell, failed_runs, files)
    if not any(predictions.is_student for predictions in files.values()):
        raise StageError(
            f"no predictions of a student in {config.stage_folder('evaluate')}: train at least one and run the stage "
            "`evaluate` first"
        )
    return list(files.values())


def _read_cell(cell: RunGraph, failed_runs: Collection[str], files: dict[str, Predictions]) -> None:
    """Add the predictions of a cell to `files`, by location: teachers first, then students by set-up and paradigm."""
    folder = predictions_folder(cell.config)
    existing = {info.name.removesuffix(".parquet") for info in storage.list_files(folder)}
    missing = {run.id for run in cell.students} - existing - set(failed_runs)
    if missing:
        raise StageError(
            f"no predictions of {', '.join(sorted(missing))} in {folder}: run the stage `evaluate` of this experiment "
            "first"
        )
    models: dict[str, Predictions] = {}
    for run in (run for run in cell.evaluated if run.id in existing):
        location = storage.join(folder, f"{run.id}.parquet")
        paradigm = run.paradigm if cell.is_student(run.id) else TEACHER  # a teacher can also be the ft student
        models[location] = files.get(location) or _read_file(location, run, paradigm, cell.config.emotions)
    _check_same_utterances(list(models.values()))
    for location in sorted(models, key=lambda location: _sort_key(models[location])):
        files.setdefault(location, models[location])


def _sort_key(predictions: Predictions) -> tuple[bool, str, int]:
    paradigm = predictions.paradigm
    rank = _PARADIGM_ORDER.index(paradigm) if paradigm in _PARADIGM_ORDER else len(_PARADIGM_ORDER)
    return predictions.is_student, predictions.setup, rank


def _read_file(location: str, run: Run, paradigm: str, emotions: Sequence[str]) -> Predictions:
    """Read and validate one file.

    Raises:
        DataError: its content is not what evaluation writes.
    """
    content = storage.read_bytes(location)
    try:
        stored = pq.read_table(BytesIO(content))
        table = stored.select(PREDICTIONS_SCHEMA.names).cast(PREDICTIONS_SCHEMA)
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{location} is not a table of predictions ({error}): run `evaluate` again") from error
    constant = {name: _constant_value(table, name, location) for name in _CONSTANT_COLUMNS}
    utterance_N = _string_column(table, "utterance")
    if len(np.unique(utterance_N)) != len(utterance_N):
        raise DataError(f"{location}: some utterances occur more than once, expected each test utterance once")
    return Predictions(
        **constant | {"paradigm": paradigm},
        trained_languages=run.languages,
        digest=hashlib.sha256(content).hexdigest()[:16],
        utterance_N=utterance_N,
        fold_N=np.full(len(utterance_N), constant["fold"], dtype=np.int64),
        language_N=_string_column(table, "language"),
        speaker_N=_string_column(table, "speaker"),
        cluster_N=_string_column(table, "cluster"),
        sentence_in_train_N=np.asarray(table["sentence_in_train"].to_pylist(), dtype=object),
        labels_N=_label_indices(table, emotions, location),
        probabilities_NC=read_class_columns(stored, PROBABILITY, emotions, context=location).astype(np.float64),
    )


def _string_column(table: pa.Table, column: str) -> npt.NDArray[np.str_]:
    return np.asarray(table[column].to_pylist(), dtype=str)


def _label_indices(table: pa.Table, emotions: Sequence[str], location: str) -> npt.NDArray[np.int64]:
    index = {emotion: position for position, emotion in enumerate(emotions)}
    names = table["emotion"].to_pylist()
    if unknown := set(names) - set(index):
        raise DataError(f"{location}: found the labels {sorted(unknown)}, the experiment has {', '.join(emotions)}")
    return np.asarray([index[name] for name in names], dtype=np.int64)


def _constant_value(table: pa.Table, column: str, location: str) -> Any:
    values = table[column].unique().to_pylist()
    if len(values) != 1:
        raise DataError(f"{location}: expected a single {column} in the file, found {values or 'no rows'}")
    return values[0]


def _check_same_utterances(predictions: Sequence[Predictions]) -> None:
    """Raise a DataError unless all models of a cell have predictions for the same utterances of each language."""
    first: dict[str, tuple[str, set[str]]] = {}
    for model in predictions:
        for language in np.unique(model.language_N):
            utterances = set(model.utterance_N[model.language_N == language].tolist())
            first_model, expected = first.setdefault(str(language), (model.model, utterances))
            if utterances != expected:
                raise DataError(
                    f"{first_model} and {model.model} were evaluated on different test utterances in {language} "
                    f"({len(expected)} and {len(utterances)}), so they cannot be compared. Run `evaluate` again."
                )
