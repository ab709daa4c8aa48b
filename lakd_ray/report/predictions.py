"""The predictions of evaluation, read and checked.

Shapes: N utterances, C classes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lakd_ray import storage
from lakd_ray.data.schema import PREDICTIONS_SCHEMA
from lakd_ray.errors import DataError, StageError
from lakd_ray.runs.graph import RunGraph
from lakd_ray.runs.layout import predictions_folder

TEACHER = "teacher"
_PARADIGM_ORDER = (TEACHER, "ft", "kd", "mtkd")
_CONSTANT_COLUMNS = ("model", "paradigm", "setup", "variant", "unknown", "fold", "seed")


@dataclass(frozen=True)
class Predictions:
    """What one model, or one student per language taken together, said about the test utterances."""

    model: str
    paradigm: str
    setup: str
    variant: str | None
    unknown: str
    """Teachers of whom nobody said what they have heard; mostly none."""
    fold: int
    seed: int
    trained_languages: tuple[str, ...]
    """Languages it was trained on; empty where the experiment does not know the run."""
    digest: str
    """Hash of the file."""
    utterance_N: npt.NDArray[np.str_]
    language_N: npt.NDArray[np.str_]
    speaker_N: npt.NDArray[np.str_]
    sentence_in_train_N: npt.NDArray[np.object_]
    """Whether the sentence is said in train too: True, False or None."""
    labels_N: npt.NDArray[np.int64]
    probabilities_NC: npt.NDArray[np.float64]

    @property
    def is_student(self) -> bool:
        """Whether it is compared, or only learned from."""
        return self.paradigm != TEACHER

    def select_languages(self, languages: Sequence[str]) -> "Predictions":
        """The part in some languages."""
        return self.take(np.flatnonzero(np.isin(self.language_N, list(languages))))

    def take(self, indices: npt.NDArray[np.integer[Any]]) -> "Predictions":
        """Some of the utterances, in this order."""
        arrays: dict[str, Any] = {name: getattr(self, name)[indices] for name in _ARRAY_FIELDS}
        return replace(self, **arrays)


_ARRAY_FIELDS = ("utterance_N", "language_N", "speaker_N", "sentence_in_train_N", "labels_N", "probabilities_NC")


def concatenate_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Several predictions as one that is otherwise like the first."""
    arrays: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in parts]) for name in _ARRAY_FIELDS}
    return replace(parts[0], **arrays)


def read_predictions(graph: RunGraph) -> list[Predictions]:
    """All predictions of the experiment: teachers first, then students by set-up and paradigm.

    Raises:
        StageError: evaluation has not run, or a student's predictions are missing.
        DataError: a file is not what evaluation writes, or models were judged on different utterances.
    """
    folder = predictions_folder(graph.config)
    files = [info for info in storage.list_files(folder) if info.name.endswith(".parquet")]
    missing = {run.id for run in graph.students} - {info.name.removesuffix(".parquet") for info in files}
    if missing:
        raise StageError(
            f"no predictions of {', '.join(sorted(missing))} in {folder}: "
            "run the stage `evaluate` of this experiment first"
        )
    order = {run.id: index for index, run in enumerate((*graph.teachers, *graph.students))}
    wanted = [info for info in files if info.name.removesuffix(".parquet") in order]
    found = [read_predictions_file(info.location, graph) for info in wanted]
    _check_same_utterances(found)
    return sorted(found, key=lambda one: (one.is_student, one.setup, _paradigm_rank(one.paradigm), order[one.model]))


def group_students(predictions: Sequence[Predictions]) -> list[Predictions]:
    """One entry per paradigm and set-up: monolingual students, each in its own language, count as one."""
    groups: dict[tuple[str, str], list[Predictions]] = {}
    for student in predictions:
        if student.is_student:
            groups.setdefault((student.paradigm, student.setup), []).append(student)
    return [members[0] if len(members) == 1 else combine_models(members) for members in groups.values()]


def combine_models(members: Sequence[Predictions]) -> Predictions:
    """Several models, each in the languages that it has learned, as one; their utterances must differ."""
    own = [
        member.select_languages(member.trained_languages) if member.trained_languages else member for member in members
    ]
    pooled = replace(
        concatenate_predictions(own),
        model=", ".join(member.model for member in own),
        trained_languages=tuple(language for member in own for language in member.trained_languages),
    )
    _check_unique(pooled.utterance_N, pooled.model)
    return pooled


def _paradigm_rank(paradigm: str) -> int:
    return _PARADIGM_ORDER.index(paradigm) if paradigm in _PARADIGM_ORDER else len(_PARADIGM_ORDER)


def read_predictions_file(location: str, graph: RunGraph) -> Predictions:
    """One file of predictions.

    Raises:
        DataError: it is not what evaluation writes.
    """
    content = storage.read_bytes(location)
    try:
        table = pq.read_table(BytesIO(content)).select(PREDICTIONS_SCHEMA.names).cast(PREDICTIONS_SCHEMA)
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{location} is not a table of predictions ({error}): run `evaluate` again") from error
    constant = {name: _constant_value(table, name, location) for name in _CONSTANT_COLUMNS}
    config, model = graph.config, constant["model"]
    run = graph.get(model) if graph.is_student(model) or graph.is_teacher(model) else None
    if run is not None:  # a teacher that is also the ft student stands among the students
        constant["paradigm"] = run.paradigm if graph.is_student(run.id) else TEACHER
    probabilities = table["probabilities"].combine_chunks()
    C = len(config.emotions)
    if set(probabilities.value_lengths().to_pylist()) != {C}:
        raise DataError(f"{location}: expected {C} probabilities per utterance, one for each of {config.emotions}")
    utterance_N = _string_column(table, "utterance")
    _check_unique(utterance_N, location)
    return Predictions(
        **constant,
        trained_languages=run.languages if run else (),
        digest=hashlib.sha256(content).hexdigest()[:16],
        utterance_N=utterance_N,
        language_N=_string_column(table, "language"),
        speaker_N=_string_column(table, "speaker"),
        sentence_in_train_N=np.asarray(table["sentence_in_train"].to_pylist(), dtype=object),
        labels_N=_label_indices(table, config.emotions, location),
        probabilities_NC=probabilities.flatten().to_numpy().reshape(-1, C).astype(np.float64),
    )


def _string_column(table: pa.Table, column: str) -> npt.NDArray[np.str_]:
    return np.asarray(table[column].to_pylist(), dtype=str)


def _label_indices(table: pa.Table, emotions: Sequence[str], location: str) -> npt.NDArray[np.int64]:
    place = {emotion: index for index, emotion in enumerate(emotions)}
    names = table["emotion"].to_pylist()
    if unknown := set(names) - set(place):
        raise DataError(f"{location}: found the labels {sorted(unknown)}, the experiment has {', '.join(emotions)}")
    return np.asarray([place[name] for name in names], dtype=np.int64)


def _constant_value(table: pa.Table, column: str, location: str) -> Any:
    values = table[column].unique().to_pylist()
    if len(values) != 1:
        raise DataError(f"{location}: expected one {column} in the whole file, found {values or 'no rows'}")
    return values[0]


def _check_unique(utterance_N: npt.NDArray[np.str_], label: str) -> None:
    if len(np.unique(utterance_N)) != len(utterance_N):
        raise DataError(f"{label}: some utterances come more than once, expected each test utterance once")


def _check_same_utterances(predictions: Sequence[Predictions]) -> None:
    """Two models may be compared in a language only if they were asked about the same utterances of it."""
    first: dict[str, tuple[str, set[str]]] = {}
    for one in predictions:
        for language in np.unique(one.language_N):
            utterances = set(one.utterance_N[one.language_N == language].tolist())
            model, expected = first.setdefault(str(language), (one.model, utterances))
            if utterances != expected:
                raise DataError(
                    f"{model} and {one.model} were judged on different test utterances in {language} "
                    f"({len(expected)} and {len(utterances)}): they cannot be compared. Run `evaluate` again."
                )
