"""Scores and sentences of language-aware students by language condition."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data.schema import LANGUAGE_CONDITIONS_SCHEMA, with_probabilities
from lakd_ray.inference.batch import language_hints
from lakd_ray.report import language_conditions
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.runs.layout import language_conditions_folder


def test_language_hints_by_condition():
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
    """Write 16 predictions per condition; corpora alternate, and the student is trained on the corpora c and d."""
    (run,) = build_run_graph(config).students
    rows = []
    for condition, correct in (("given", 8), ("identified", 7), ("unknown", 6), ("wrong", 4)):
        for number in range(16):
            language, label = ("en", "fi")[number % 2], (number // 2) % 4
            corpus = corpora[number % len(corpora)]
            predicted = label if number // 2 < correct else (label + 1) % 4
            rows.append(
                {
                    "utterance": f"u{number}", "corpus": corpus, "corpus_in_train": corpus in "cd",
                    "language": language, "model": run.id, "condition": condition,
                    "predicted_language": "en" if number < 12 else language, "emotion": config.emotions[label],
                    **{f"p_{name}": float(index == predicted) for index, name in enumerate(config.emotions)},
                }
            )  # fmt: skip
    rows = [row for row in rows if wrong or row["condition"] != "wrong"]
    file = storage.join(language_conditions_folder(config), f"{run.id}.parquet")
    schema = with_probabilities(LANGUAGE_CONDITIONS_SCHEMA, config.emotions)
    storage.write_table(file, pa.Table.from_pylist(rows, schema=schema))


def test_rows_and_sentences(config: Experiment):
    write(config)
    rows = language_conditions.score_cells([build_run_graph(config)])
    pooled = {row["condition"]: row for row in rows if row["language"] == "all"}
    assert [pooled[name]["UR"] for name in language_conditions.CONDITIONS] == [1.0, 0.875, 0.75, 0.5]
    assert all(row["language_accuracy"] == 10 / 16 for row in pooled.values())
    assert {row["language_accuracy"] for row in rows if row["language"] == "fi"} == {2 / 8}
    assert {row["language_accuracy_new_corpora"] for row in rows} == {None}
    model, caveat = language_conditions.summary_sentences(rows)
    assert (
        "100.0 with the language given, 87.5 with the language identified by the student, 75.0 with the language "
        "unknown, 50.0 with a wrong language" in model
    )
    assert "It identifies the language correctly in 62.5 % of the utterances" in model
    assert "the two cannot be distinguished, and identification across corpora is not measured" in caveat
    lines = {line.language: line for line in language_conditions.build_language_table(rows)}
    assert lines["all"].UR == [1.0, 0.875, 0.75, 0.5] and lines["fi"].language_accuracy == 2 / 8


def test_identification_is_measured_in_new_corpora(config: Experiment):
    write(config, ("c", "d", "new", "newer"))  # languages alternate too: new is en, newer is fi
    rows = language_conditions.score_language_conditions(build_run_graph(config))
    given = {row["language"]: row for row in rows if row["condition"] == "given"}
    assert [given[code]["language_accuracy_new_corpora"] for code in ("en", "fi", "all")] == [1.0, 1 / 4, 5 / 8]
    assert given["all"]["n_new_corpora"] == 8
    assert "identified in 62.5 % of 8 (mtkd-" in language_conditions.summary_sentences(rows)[1]


def test_corpora_in_train_are_not_new(config: Experiment):
    write(config, ("c", "d", "d"))
    rows = language_conditions.score_language_conditions(build_run_graph(config))
    assert "the student was trained on every test corpus" in language_conditions.summary_sentences(rows)[1]


def test_one_language_has_no_wrong_one(config: Experiment):
    write(config, wrong=False)
    rows = language_conditions.score_language_conditions(build_run_graph(config))
    assert {row["condition"] for row in rows} == {"given", "identified", "unknown"}
    assert language_conditions.build_language_table(rows)[0].UR[-1] is None
    assert "wrong language" not in language_conditions.summary_sentences(rows)[0]


def test_means_over_cells(config: Experiment):
    cells = [config.model_copy(update={"seed": seed}) for seed in (1, 2)]
    for cell in cells:
        write(cell)
    rows = language_conditions.score_cells([build_run_graph(cell) for cell in cells])
    assert {row["model"] for row in rows} == {"mtkd-multilingual"}
    (pooled,) = [row for row in rows if row["language"] == "all" and row["condition"] == "wrong"]
    assert (pooled["UR"], pooled["n"]) == (0.5, 32)


def test_other_students_have_no_rows(config: Experiment):
    assert language_conditions.score_language_conditions(build_run_graph(config)) == []
    assert language_conditions.summary_sentences([]) == []
