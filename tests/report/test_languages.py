"""What is said of a student whose language is told, heard, hidden or mistaken."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.infer.batch import told
from lakd_ray.report import languages
from lakd_ray.runs import languages_folder, student_runs
from lakd_ray.schema import LANGUAGES


def test_what_a_student_is_told():
    codes = ["en", "fr", "sv"]
    assert told(codes, "given", ("en", "fi", "fr")) == codes
    assert told(codes, "identified", ("en", "fi", "fr")) == [None] * 3
    assert told(codes, "unknown", ("en", "fi", "fr")) == [""] * 3
    wrong = told(codes, "wrong", ("en", "fi", "fr"))
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


def test_rows_and_sentences(config: Experiment):
    (run,) = student_runs(config)
    rows = []
    for condition, right in (("given", 8), ("identified", 7), ("unknown", 6), ("wrong", 4)):
        for number in range(16):
            language, label = ("en", "fi")[number % 2], (number // 2) % 4
            answer = label if number // 2 < right else (label + 1) % 4
            rows.append(
                {
                    "utterance": f"u{number}", "language": language, "model": run.id, "condition": condition,
                    "heard": "en" if number < 12 else language, "emotion": config.emotions[label],
                    "probabilities": np.eye(4)[answer].tolist(),
                }
            )  # fmt: skip
    place = storage.join(languages_folder(config), f"{run.id}.parquet")
    storage.write_table(place, pa.Table.from_pylist(rows, schema=LANGUAGES))
    found = languages.rows(config)
    pooled = {row["condition"]: row for row in found if row["language"] == "all"}
    assert [pooled[name]["UR"] for name in languages.CONDITIONS] == [1.0, 0.875, 0.75, 0.5]
    assert all(row["heard"] == 10 / 16 for row in pooled.values())
    assert {row["heard"] for row in found if row["language"] == "fi"} == {2 / 8}
    said = languages.sentences(config, found)
    assert "100.0 with the language given, 87.5 as it hears it, 75.0 with the language hidden, 50.0" in said[0]
    assert "hears the right language in 62.5 % of the utterances" in said[0]
    assert "cannot be told apart here" in said[1]


def test_nothing_is_said_of_others(config: Experiment):
    assert languages.rows(config) == [] and languages.sentences(config, []) == []
