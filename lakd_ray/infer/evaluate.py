"""The evaluate stage: what every model says about the test utterances, one Parquet file a model."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakd_ray import records, storage
from lakd_ray.config import Experiment
from lakd_ray.data import manifest as manifests
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.errors import DataError
from lakd_ray.infer.batch import Answers, Asked, Condition, logits
from lakd_ray.infer.predictor import softmax
from lakd_ray.models import Card
from lakd_ray.models.checkpoint import read_card_at
from lakd_ray.provenance import Seen
from lakd_ray.runs import Run, languages_folder, predictions_folder, student_runs, teacher_runs
from lakd_ray.schema import LANGUAGES, PREDICTIONS
from lakd_ray.train.state import best_checkpoint

_AT_ONCE = 6e9  # bytes of models that one worker holds
_CONDITIONS: tuple[Condition, ...] = ("identified", "unknown", "wrong")  # beside "given", which counts as its answer


@dataclass(frozen=True)
class _Model:
    """A run whose model is asked, and the cell that its predictions belong to."""

    cell: Experiment
    run: Run
    paradigm: str
    checkpoint: str

    @property
    def place(self) -> str:
        """Its file of predictions, without the ending."""
        return storage.join(predictions_folder(self.cell), self.run.id)

    @cached_property
    def card(self) -> Card:
        """The checkpoint's."""
        return read_card_at(self.checkpoint)

    def probabilities(self, logits_RC: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Calibrated on dev, as the endpoint gives them."""
        return list(softmax(logits_RC / self.card.temperature))

    @property
    def ways(self) -> tuple[Condition, ...]:
        """In which other ways it is asked; there is no wrong language where there is one."""
        if self.run.recipe.model.language_aware is None:
            return ()
        return tuple(way for way in _CONDITIONS if way != "wrong" or len(self.cell.languages) > 1)

    def judged_on(self, manifest: Manifest, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of some rows its answers count for: of monolingual students their own language's."""
        if self.paradigm == "teacher" or self.run.setup != "monolingual":
            return np.ones(len(rows), dtype=bool)
        return np.isin(manifest.languages_N[rows].astype(str), self.run.languages)


def run(config: Experiment, *others: Experiment, without: Collection[str] = ()) -> str:
    """Ask every teacher and student about the test rows; models that were asked already are skipped.

    Teachers answer in every language, monolingual students in their own.

    Args:
        others: the experiment with other seeds or settings of its students, in the same fold: asked in the same pass.
        without: runs that are not to be asked, because they failed.

    Returns:
        The folder of the predictions.

    Raises:
        StageError: a run is not trained.
        HygieneError: a model has seen a test speaker.
        DataError: the number of predictions is not the manifest's.
    """
    manifest = manifests.load(config)
    rows = manifest.rows("test")
    models = [model for cell in (config, *others) for model in _models(cell, without)]
    models = list({model.place: model for model in models}.values())
    made_by = {model.place: _made_by(manifest, rows, model) for model in models}
    for model in models:
        model.card.provenance.check(model=model.run.id, dev=Seen(), test=manifest.seen(rows))
    missing = [model for model in models if not _done(model, made_by[model.place])]
    if not missing:
        print(f"evaluate: already done, {predictions_folder(config)}")
    for some in _passes(missing):
        asked = {
            f"{model.place} {way}": Asked(model.checkpoint, way) for model in some for way in ("given", *model.ways)
        }
        answers = logits(config, manifest, rows, asked, title="evaluate")
        for model in some:
            ways: dict[Condition, Answers] = {way: answers[f"{model.place} {way}"] for way in ("given", *model.ways)}
            _write(manifest, rows, model, ways, made_by[model.place])
    if missing:
        names = list(dict.fromkeys(model.run.id for model in missing))
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        print(f"evaluate: {len(rows)} test utterances by {shown} -> {predictions_folder(config)}")
    return predictions_folder(config)


def _models(cell: Experiment, without: Collection[str]) -> list[_Model]:
    students = {run.id: run for run in student_runs(cell)}
    runs = {run.id: run for run in teacher_runs(cell)} | students
    return [
        _Model(cell, run, run.paradigm if name in students else "teacher", best_checkpoint(run, cell))
        for name, run in runs.items()
        if name not in without
    ]


def _passes(models: Sequence[_Model]) -> Iterator[list[_Model]]:
    """Models that are in memory together."""
    some: list[_Model] = []
    size = 0
    for model in models:
        seal = storage.read_json(storage.join(model.checkpoint, storage.SEAL))
        more = sum(entry["bytes"] for entry in seal.values())
        if some and size + more > _AT_ONCE:
            yield some
            some, size = [], 0
        some.append(model)
        size += more
    if some:
        yield some


def _write(
    manifest: Manifest, rows: Rows, model: _Model, ways: Mapping[Condition, Answers], made_by: dict[str, Any]
) -> None:
    location = f"{model.place}.parquet"
    table = _table(manifest, rows, model, ways["given"].logits_RC)
    storage.write_table(location, table)
    _check_count(location, len(table))
    if model.ways:
        storage.write_table(_languages_file(model), _languages(manifest, rows, model, ways))
    records.start(_record(model), made_by)
    records.finish(_record(model), made_by, [])


def _record(model: _Model) -> str:
    return storage.join(predictions_folder(model.cell), "records", model.run.id)


def _done(model: _Model, made_by: dict[str, Any]) -> bool:
    written = [f"{model.place}.parquet", *([_languages_file(model)] if model.ways else [])]
    return records.is_done(_record(model), made_by) and all(map(storage.exists, written))


def _languages_file(model: _Model) -> str:
    return storage.join(languages_folder(model.cell), f"{model.run.id}.parquet")


def _made_by(manifest: Manifest, rows: Rows, model: _Model) -> dict[str, Any]:
    return {
        "checkpoint": records.digest(storage.read_json(storage.join(model.checkpoint, storage.SEAL))),
        "audio": records.digest(manifest.table["audio_sha256"].take(rows).to_pylist()),
        **({"ways": list(model.ways), "columns": LANGUAGES.names} if model.ways else {}),
    }


def _table(manifest: Manifest, rows: Rows, model: _Model, logits_RC: npt.NDArray[np.float32]) -> pa.Table:
    """Predictions of one model, see `lakd_ray.schema.PREDICTIONS`."""
    run, keep = model.run, model.judged_on(manifest, rows)
    part = manifest.table.take(rows[keep])
    count = len(part)
    copied = ("utterance", "corpus", "language", "speaker", "sentence", "emotion")
    columns: dict[str, Any] = {
        **{name: part[name] for name in copied},
        "sentence_in_train": manifest.said_in_train(rows[keep]),
        "fold": [model.cell.fold] * count,
        "seed": [model.cell.seed] * count,
        "paradigm": [model.paradigm] * count,
        "setup": [run.setup] * count,
        "variant": [run.variant] * count,
        "model": [run.id] * count,
        "unknown": [", ".join(sorted(model.card.provenance.unknown))] * count,
        "probabilities": model.probabilities(logits_RC[keep]),
    }
    return pa.table({name: columns[name] for name in PREDICTIONS.names}, schema=PREDICTIONS)


def _languages(manifest: Manifest, rows: Rows, model: _Model, ways: Mapping[Condition, Answers]) -> pa.Table:
    """A language-aware student's answers by what it was told, see `lakd_ray.schema.LANGUAGES`."""
    keep = model.judged_on(manifest, rows)
    part = manifest.table.select(["utterance", "corpus", "language", "emotion"]).take(rows[keep])
    trained = set(manifest.table["corpus"].take(manifest.rows("train", model.run.languages)).to_pylist())
    tables = []
    for way, answers in ways.items():
        columns: dict[str, Any] = {
            **{column: part[column] for column in part.column_names},
            "corpus_in_train": [corpus in trained for corpus in part["corpus"].to_pylist()],
            "model": [model.run.id] * len(part),
            "condition": [way] * len(part),
            "heard": [model.cell.languages[place] for place in answers.heard_R[keep]],
            "probabilities": model.probabilities(answers.logits_RC[keep]),
        }
        tables.append(pa.table({column: columns[column] for column in LANGUAGES.names}, schema=LANGUAGES))
    return pa.concat_tables(tables)


def _check_count(place: str, expected: int) -> None:
    found = len(storage.read_table(place, columns=["utterance"]))
    if found != expected:
        raise DataError(f"{place} holds {found} predictions, expected {expected}: delete it and evaluate again")
