"""What is said of a student whose language is told, heard, hidden or mistaken."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data.schema import LANGUAGE_CONDITIONS_SCHEMA
from lakd_ray.inference.batch import language_hints
from lakd_ray.report import language_conditions
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.runs.layout import language_conditions_folder


def test_what_a_student_is_told():
    codes = ["en", "fr", "sv"]
    assert language_hints(codes, "given", ("en", "fi", "fr")) == codes
    assert language_hints(codes, "identified", ("en", "fi", "fr")) == [None] * 3
    assert language_hints(codes, "unknown", ("en", "fi", "fr")) == [""] * 3
    wrong = language_hints(codes, "wrong", ("en", "fi", "fr"))
    assert wrong == ["fi", "en", "en"]


@pytest.fixture
def config(tmp_path: Path) -> Experiment:
    recipe: dict[str, Any] = {"model": {"pretrained": "somewhere"}}
    aware = {"model": {"pretrained": "somewhere", "language_aware": {}}}
    corpora = [{"name": "c", "root": "x"}]
    content = {"name": "e", "storage": str(tmp_path), "languages": ["en", "fi"], "corpora": corpora}
    return Experiment.model_validate(
        {**content, "teacher": recipe, "student": aware, "distill": {"paradigms": ["mtkd"]}}
    )


def write(config: Experiment, corpora: tuple[str, ...] = ("c", "d"), *, wrong: bool = True) -> None:
    """16 utterances; corpora take turns by language, and any but c and d is none that the student was trained on."""
    (run,) = build_run_graph(config).students
    rows = []
    for condition, right in (("given", 8), ("identified", 7), ("unknown", 6), ("wrong", 4)):
        for number in range(16):
            language, label = ("en", "fi")[number % 2], (number // 2) % 4
            corpus = corpora[number % len(corpora)]
            answer = label if number // 2 < right else (label + 1) % 4
            rows.append(
                {
                    "utterance": f"u{number}", "corpus": corpus, "corpus_in_train": corpus in "cd",
                    "language": language, "model": run.id, "condition": condition,
                    "predicted_language": "en" if number < 12 else language, "emotion": config.emotions[label],
                    "probabilities": np.eye(4)[answer].tolist(),
                }
            )  # fmt: skip
    kept = [row for row in rows if wrong or row["condition"] != "wrong"]
    place = storage.join(language_conditions_folder(config), f"{run.id}.parquet")
    storage.write_table(place, pa.Table.from_pylist(kept, schema=LANGUAGE_CONDITIONS_SCHEMA))


def test_rows_and_sentences(config: Experiment):
    write(config)
    found = language_conditions.score_language_conditions(build_run_graph(config))
    pooled = {row["condition"]: row for row in found if row["language"] == "all"}
    assert [pooled[name]["UR"] for name in language_conditions.CONDITIONS] == [1.0, 0.875, 0.75, 0.5]
    assert all(row["language_accuracy"] == 10 / 16 for row in pooled.values())
    assert {row["language_accuracy"] for row in found if row["language"] == "fi"} == {2 / 8}
    assert {row["language_accuracy_new_corpora"] for row in found} == {None}
    said = language_conditions.summary_sentences(found)
    assert "100.0 with the language given, 87.5 as it hears it, 75.0 with the language hidden, 50.0" in said[0]
    assert "hears the right language in 62.5 % of the utterances" in said[0]
    assert "cannot be told apart here, and hearing is not measured across corpora" in said[1]
    lines = {line.language: line for line in language_conditions.build_language_table(found)}
    assert lines["all"].UR == [1.0, 0.875, 0.75, 0.5] and lines["fi"].language_accuracy == 2 / 8


def test_hearing_is_measured_in_corpora_that_are_new(config: Experiment):
    write(config, ("c", "d", "new", "newer"))  # languages take turns too: new is en, newer is fi
    found = {
        row["language"]: row
        for row in language_conditions.score_language_conditions(build_run_graph(config))
        if row["condition"] == "given"
    }
    assert [found[code]["language_accuracy_new_corpora"] for code in ("en", "fi", "all")] == [1.0, 1 / 4, 5 / 8]
    assert found["all"]["n_new_corpora"] == 8
    assert (
        "identified in 62.5 % of 8 (mtkd-"
        in language_conditions.summary_sentences(
            language_conditions.score_language_conditions(build_run_graph(config))
        )[1]
    )


def test_two_corpora_that_were_trained_on_are_no_new_ones(config: Experiment):
    write(config, ("c", "d", "d"))
    assert (
        "the student was trained on every corpus of the test"
        in language_conditions.summary_sentences(
            language_conditions.score_language_conditions(build_run_graph(config))
        )[1]
    )


def test_with_one_language_there_is_no_wrong_one(config: Experiment):
    write(config, wrong=False)
    found = language_conditions.score_language_conditions(build_run_graph(config))
    assert {row["condition"] for row in found} == {"given", "identified", "unknown"}
    assert language_conditions.build_language_table(found)[0].UR[-1] is None
    assert "another one in its place" not in language_conditions.summary_sentences(found)[0]


def test_nothing_is_said_of_others(config: Experiment):
    assert (
        language_conditions.score_language_conditions(build_run_graph(config)) == []
        and language_conditions.summary_sentences([]) == []
    )
