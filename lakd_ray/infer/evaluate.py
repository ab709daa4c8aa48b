"""The evaluate stage: what every model says about the test utterances, one Parquet file a model."""

from collections.abc import Collection, Mapping, Sequence
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
from lakd_ray.models.checkpoint import read_card_at
from lakd_ray.provenance import Seen
from lakd_ray.runs import LANGUAGES_FOLDER, Run, predictions_folder, student_runs, teacher_runs
from lakd_ray.schema import LANGUAGES, PREDICTIONS
from lakd_ray.train.state import best_checkpoint

_CONDITIONS: tuple[Condition, ...] = ("identified", "unknown", "wrong")  # beside "given", which counts as its answer


def run(config: Experiment, variants: Sequence[Experiment] = (), without: Collection[str] = ()) -> str:
    """Ask every teacher and student about the test rows; models that were asked already are skipped.

    Teachers answer in every language, monolingual students in their own.

    Args:
        variants: the experiment with other settings of its students, in the same fold and with the same seed.
        without: runs that are not to be asked, because they failed.

    Returns:
        The folder of the predictions.

    Raises:
        StageError: a run is not trained.
        HygieneError: a model has seen a test speaker.
        DataError: the number of predictions is not the manifest's.
    """
    folder = predictions_folder(config)
    manifest = manifests.load(config)
    rows = manifest.rows("test")
    students = {run.id: run for each in (config, *variants) for run in student_runs(each) if run.id not in without}
    runs = {run.id: run for run in teacher_runs(config) if run.id not in without} | students
    checkpoints = {name: best_checkpoint(run, config) for name, run in runs.items()}
    made_by = {name: _made_by(manifest, rows, location) for name, location in checkpoints.items()}
    for name, location in checkpoints.items():
        read_card_at(location).provenance.check(model=name, dev=Seen(), test=manifest.seen(rows))
    missing = {name: location for name, location in checkpoints.items() if not _done(folder, name, made_by[name])}
    if not missing:
        print(f"evaluate: already done, {folder}")
        return folder
    asked = {name: Asked(location) for name, location in missing.items()}
    told = {
        name: [condition for condition in _CONDITIONS if runs[name].recipe.model.language_aware] for name in missing
    }
    others = {f"{name} {way}": Asked(missing[name], way) for name, ways in told.items() for way in ways}
    answers = logits(config, manifest, rows, asked | others, title="evaluate")
    for name in missing:
        logits_RC = answers[name].logits_RC
        paradigm = runs[name].paradigm if name in students else "teacher"
        table = _table(config, manifest, rows, logits_RC, runs[name], paradigm)
        place = storage.join(folder, f"{name}.parquet")
        storage.write_table(place, table)
        _check_count(place, len(table))
        if told[name]:
            ways: dict[str, Answers] = {way: answers[f"{name} {way}"] for way in told[name]}
            ways["given"] = answers[name]
            storage.write_table(
                storage.join(folder, LANGUAGES_FOLDER, f"{name}.parquet"),
                _languages(config, manifest, rows, name, ways),
            )
        records.start(_record(folder, name), made_by[name])
        records.finish(_record(folder, name), made_by[name], [])
    print(f"evaluate: {len(rows)} test utterances by {', '.join(missing)} -> {folder}")
    return folder


def _record(folder: str, name: str) -> str:
    return storage.join(folder, "records", name)


def _done(folder: str, name: str, made_by: dict[str, Any]) -> bool:
    return records.is_done(_record(folder, name), made_by) and storage.exists(storage.join(folder, f"{name}.parquet"))


def _made_by(manifest: Manifest, rows: Rows, checkpoint: str) -> dict[str, Any]:
    return {
        "checkpoint": records.digest(storage.read_json(storage.join(checkpoint, storage.SEAL))),
        "audio": records.digest(manifest.table["audio_sha256"].take(rows).to_pylist()),
    }


def _table(
    config: Experiment,
    manifest: Manifest,
    rows: Rows,
    logits_RC: npt.NDArray[np.float32],
    run: Run,
    paradigm: str,
) -> pa.Table:
    """Predictions of one model, see `lakd_ray.schema.PREDICTIONS`."""
    keep = np.ones(len(rows), dtype=bool)
    if paradigm != "teacher" and run.setup == "monolingual":
        keep = np.isin(manifest.languages_N[rows].astype(str), run.languages)
    part = manifest.table.take(rows[keep])
    count = len(part)
    copied = ("utterance", "corpus", "language", "speaker", "sentence", "emotion")
    columns: dict[str, Any] = {
        **{name: part[name] for name in copied},
        "sentence_in_train": manifest.said_in_train(rows[keep]),
        "fold": [config.fold] * count,
        "seed": [config.seed] * count,
        "paradigm": [paradigm] * count,
        "setup": [run.setup] * count,
        "variant": [run.variant] * count,
        "model": [run.id] * count,
        "probabilities": list(softmax(logits_RC[keep])),
    }
    return pa.table({name: columns[name] for name in PREDICTIONS.names}, schema=PREDICTIONS)


def _languages(config: Experiment, manifest: Manifest, rows: Rows, name: str, ways: Mapping[str, Answers]) -> pa.Table:
    """A language-aware student's answers by what it was told, see `lakd_ray.schema.LANGUAGES`."""
    part = manifest.table.select(["utterance", "language", "emotion"]).take(rows)
    tables = []
    for way, answers in ways.items():
        columns: dict[str, Any] = {
            **{column: part[column] for column in part.column_names},
            "model": [name] * len(rows),
            "condition": [way] * len(rows),
            "heard": [config.languages[place] for place in answers.heard_R],
            "probabilities": list(softmax(answers.logits_RC)),
        }
        tables.append(pa.table({column: columns[column] for column in LANGUAGES.names}, schema=LANGUAGES))
    return pa.concat_tables(tables)


def _check_count(place: str, expected: int) -> None:
    found = len(storage.read_table(place, columns=["utterance"]))
    if found != expected:
        raise DataError(f"{place} holds {found} predictions, expected {expected}: delete it and evaluate again")
