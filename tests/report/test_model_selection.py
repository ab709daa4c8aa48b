"""Comparison of settings on dev, from the metrics files of runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from lakd_ray import metrics, storage
from lakd_ray.config import Experiment, with_variant
from lakd_ray.report import model_selection
from lakd_ray.runs.graph import build_run_graph

VARIANTS = {
    "uniform": {"distill.mtkd.weighting": "uniform", "distill.paradigms": ["mtkd"]},
    "half": {"student.model.num_layers": 1},
}


@pytest.fixture
def cells(tmp_path: Path) -> list[Experiment]:
    recipe: dict[str, Any] = {"model": {"pretrained": "somewhere"}}
    config = Experiment.model_validate(
        {
            "name": "e", "storage": str(tmp_path), "languages": ["en", "fi"],
            "corpora": [{"name": "c", "root": "x"}], "teacher": recipe, "student": recipe,
            "distill": {"paradigms": ["ft", "mtkd"], "setups": ["multilingual"]}, "grid": {"variants": VARIANTS},
        }
    )  # fmt: skip
    settings = [config, *(with_variant(config, name) for name in VARIANTS)]
    return [setting.model_copy(update={"seed": seed}) for seed in (1, 2, 3) for setting in settings]


def train(cell: Experiment, paradigm: str, epochs: list[float]) -> None:
    for run in build_run_graph(cell).students:
        if run.paradigm == paradigm:
            lines = [json.dumps({"epoch": number, "dev_UR": UR}) for number, UR in enumerate(epochs)]
            storage.write_bytes(storage.join(run.folder(cell), "metrics.jsonl"), "\n".join(lines).encode())


def compare(cells: list[Experiment]) -> list[dict[str, Any]]:
    return model_selection.compare_settings(
        model_selection.compute_dev_scores([build_run_graph(cell) for cell in cells])
    )


def test_the_best_epoch_counts_and_differences_are_paired(cells: list[Experiment]):
    for cell in cells:
        base = 0.5 + 0.1 * cell.seed  # seeds differ much more than settings
        gain = {None: 0.0, "uniform": 0.02, "half": -0.05}[cell.variant]
        train(cell, "mtkd", [0.3, base + gain, 0.4])
        train(cell, "ft", [base])
    rows = compare(cells)
    mtkd = [row for row in rows if row["paradigm"] == "mtkd"]
    assert [row["variant"] for row in mtkd] == ["uniform", None, "half"]
    assert [row["UR"] for row in mtkd] == pytest.approx([0.72, 0.70, 0.65])
    assert [row["cells"] for row in mtkd] == [3, 3, 3]
    assert mtkd[0]["difference"] == pytest.approx(0.02) and mtkd[0]["interval"] == pytest.approx([0.02, 0.02])
    assert mtkd[1]["difference"] is None
    ft_sentence, mtkd_sentence = model_selection.summary_sentences(rows)
    assert "the base settings are the best" in ft_sentence
    assert "uniform is the best of 3 settings of MTKD multilingual: +2.0 points" in mtkd_sentence
    assert "significant" not in mtkd_sentence


def test_cells_with_untrained_runs_are_left_out(cells: list[Experiment]):
    for cell in cells:
        if cell.seed == 1 or cell.variant is None:
            train(cell, "mtkd", [0.6 if cell.variant is None else 0.7])
    rows = {row["variant"]: row for row in compare(cells)}
    assert rows["half"]["cells"] == 1 and rows[None]["cells"] == 3
    assert rows["half"]["difference"] == pytest.approx(0.1) and rows["half"]["interval"] is None
    (sentence,) = model_selection.summary_sentences(list(rows.values()))
    assert "one cell gives no interval" in sentence
    assert model_selection.compute_dev_scores([]) == [] and model_selection.summary_sentences([]) == []


def test_an_interval_that_includes_zero_is_not_significant(cells: list[Experiment]):
    for cell in cells:
        train(cell, "mtkd", [0.6 if cell.variant is None else 0.6 + (0.1, -0.08, 0.0)[cell.seed - 1]])
    (sentence,) = model_selection.summary_sentences(compare(cells))
    assert sentence.endswith("not significant, the interval includes zero.")


def test_mean_interval_agrees_with_the_normal_approximation():
    import numpy as np

    values = np.random.default_rng(0).normal(0.3, 0.1, 400)
    low, high = metrics.bootstrap_mean_interval(values) or (0.0, 0.0)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert metrics.bootstrap_mean_interval(values[:1]) is None
