"""Evaluation tables of language-aware students, from synthetic outputs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import fake_data as noise

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.provenance import Provenance
from lakd_ray.inference import evaluate
from lakd_ray.inference.batch import InferenceResult
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import CheckpointMetadata
from lakd_ray.runs.graph import build_run_graph

LANGUAGES, CORPORA = ("en", "fi"), ("c", "c", "c", "new")
ROWS = 8


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Return a manifest of alternating languages: the first half is train, and a corpus of the second half is new."""
    plain = noise.manifest(tmp_path, train=ROWS // 2, dev=ROWS // 2)
    codes = [LANGUAGES[row % 2] for row in range(ROWS)]
    corpora = [CORPORA[row % 4] if row >= ROWS // 2 else "c" for row in range(ROWS)]
    table = plain.table
    for name, values in (("language", codes), ("corpus", corpora)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    splits = np.where(plain.splits_N == "dev", "test", plain.splits_N)
    return replace(plain, table=table, languages_N=np.array(codes, dtype=object), splits_N=splits)


def experiment(folder: Path, languages: tuple[str, ...], setup: str) -> Experiment:
    recipe: dict[str, Any] = {"model": {"pretrained": "unused"}}
    return Experiment.model_validate(
        {
            "name": "e",
            "storage": str(folder),
            "languages": languages,
            "corpora": [{"name": "c", "root": "x"}],
            "teacher": recipe,
            "student": {"model": {"pretrained": "unused", "language_aware": {}}},
            "distill": {"paradigms": ["mtkd"], "setups": [setup]},
        }
    )


DEV = {"calibration_temperature": 2.0}


def evaluated_model(config: Experiment) -> Any:
    run = build_run_graph(config).students[-1]
    model = evaluate._EvaluatedModel(config, run, run.paradigm, "unused")
    model.__dict__["metadata"] = CheckpointMetadata("m", config.emotions, run.languages, Provenance(), {"dev": DEV})
    return model


def table_rows(model: Any, manifest: Manifest) -> list[dict[str, Any]]:
    rows = manifest.rows("test")
    predicted_language_R = np.array([LANGUAGES[row % 2] for row in range(len(rows))], dtype=object)
    logits_RC = np.eye(4, dtype=np.float32)[: len(rows)]
    results = {condition: InferenceResult(logits_RC, predicted_language_R) for condition in model.conditions}
    table = evaluate._language_conditions_table(manifest, rows, model, results)
    return list(table.to_pylist())


def test_each_condition_has_the_test_rows_once(tmp_path: Path, manifest: Manifest):
    rows = table_rows(evaluated_model(experiment(tmp_path, LANGUAGES, "multilingual")), manifest)
    ids = [manifest.ids[row] for row in manifest.rows("test")]
    for condition in ("given", "identified", "unknown", "wrong"):
        part = [row for row in rows if row["condition"] == condition]
        assert [row["utterance"] for row in part] == ids
        assert [row["corpus_in_train"] for row in part] == [True, True, True, False]
        assert [row["predicted_language"] for row in part] == ["en", "fi", "en", "fi"]
    assert len(rows) == 4 * len(ids)


def test_probabilities_are_calibrated(tmp_path: Path, manifest: Manifest):
    model = evaluated_model(experiment(tmp_path, LANGUAGES, "multilingual"))
    (first, *_) = table_rows(model, manifest)
    largest = np.exp(1 / DEV["calibration_temperature"])
    assert max(first[f"p_{name}"] for name in PAPER_EMOTIONS) == pytest.approx(largest / (largest + 3))


def test_a_monolingual_student_is_scored_on_its_own_language(tmp_path: Path, manifest: Manifest):
    """For a different language its identifier is always wrong and its embedding is untrained."""
    model = evaluated_model(experiment(tmp_path, LANGUAGES, "monolingual"))
    assert model.run.languages == ("fi",)
    rows = table_rows(model, manifest)
    assert {row["language"] for row in rows} == {"fi"}
    assert len(rows) == 4 * 2
    assert {max(PAPER_EMOTIONS, key=lambda name: row[f"p_{name}"]) for row in rows} == {"happiness", "sadness"}


def test_predictions_without_class_names_or_of_other_classes_are_computed_again(tmp_path: Path, manifest: Manifest):
    model = evaluated_model(experiment(tmp_path, LANGUAGES, "multilingual"))
    rows = manifest.rows("test")
    results = {
        condition: InferenceResult(np.eye(4, dtype=np.float32), np.array(["en"] * 4, dtype=object))
        for condition in model.conditions
    }
    plain = {name: pa.array(["x"] * ROWS) for name in ("session", "sentence")}
    complete = replace(
        manifest, table=pa.table(dict(zip(manifest.table.column_names, manifest.table.columns, strict=True)) | plain)
    )
    evaluate._write_predictions(complete, rows, model, results, {})
    assert evaluate._is_done(model, {})
    reversed_order = replace(model, config=model.config.model_copy(update={"emotions": PAPER_EMOTIONS[::-1]}))
    assert evaluate._is_done(reversed_order, {})
    file = f"{model.predictions_stem}.parquet"
    table = storage.read_table(file)
    for names in ({"p_anger": "p_fear"}, {"p_anger": "anger"}):
        storage.write_table(file, table.rename_columns(names))
        assert not evaluate._is_done(model, {})


def test_predictions_have_the_cluster_that_their_corpus_declares(tmp_path: Path, manifest: Manifest):
    config = experiment(tmp_path, LANGUAGES, "multilingual")
    sessions = {"session": pa.array([f"s{row // 2}" for row in range(ROWS)]), "sentence": pa.array(["x"] * ROWS)}
    columns = dict(zip(manifest.table.column_names, manifest.table.columns, strict=True))
    complete = replace(manifest, table=pa.table(columns | sessions))
    rows = manifest.rows("test")
    dialogs = config.corpora[0].model_copy(update={"independent_units": "sessions"})
    by_session = config.model_copy(update={"corpora": (dialogs,)})
    speakers = columns["speaker"].to_pylist()[ROWS // 2 :]
    # the last utterance is of the corpus `new`
    for changed, clusters in ((config, speakers), (by_session, ["c:s2", "c:s2", "c:s3", speakers[-1]])):
        table = evaluate._predictions_table(complete, rows, evaluated_model(changed), np.eye(4, dtype=np.float32))
        assert table["cluster"].to_pylist() == clusters


def test_a_single_language_has_no_wrong_condition(tmp_path: Path):
    assert evaluated_model(experiment(tmp_path, ("en",), "multilingual")).extra_conditions == ("identified", "unknown")
