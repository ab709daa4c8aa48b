"""Which settings dev prefers, from the metrics that runs leave."""

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
    return [one.model_copy(update={"seed": seed}) for seed in (1, 2, 3) for one in settings]


def train(cell: Experiment, paradigm: str, epochs: list[float]) -> None:
    for run in build_run_graph(cell).students:
        if run.paradigm == paradigm:
            lines = [json.dumps({"epoch": number, "dev_UR": UR}) for number, UR in enumerate(epochs)]
            storage.write_bytes(storage.join(run.folder(cell), "metrics.jsonl"), "\n".join(lines).encode())


def test_the_best_epoch_counts_and_differences_are_paired(cells: list[Experiment]):
    for cell in cells:
        base = 0.5 + 0.1 * cell.seed  # seeds differ by much more than settings
        gain = {None: 0.0, "uniform": 0.02, "half": -0.05}[cell.variant]
        train(cell, "mtkd", [0.3, base + gain, 0.4])
        train(cell, "ft", [base])
    told = model_selection.compare_settings(
        model_selection.compute_dev_scores([build_run_graph(cell) for cell in cells])
    )
    mtkd = [row for row in told if row["paradigm"] == "mtkd"]
    assert [row["variant"] for row in mtkd] == ["uniform", None, "half"]
    assert [row["UR"] for row in mtkd] == pytest.approx([0.72, 0.70, 0.65])
    assert [row["cells"] for row in mtkd] == [3, 3, 3]
    assert mtkd[0]["difference"] == pytest.approx(0.02) and mtkd[0]["interval"] == pytest.approx([0.02, 0.02])
    assert mtkd[1]["difference"] is None
    ft, chosen = model_selection.summary_sentences(told)
    assert "own are the best" in ft
    assert "3 settings of MTKD multilingual uniform is the best: +2.0 points" in chosen and "decide" not in chosen


def test_runs_that_are_not_trained_leave_their_cell_out(cells: list[Experiment]):
    for cell in cells:
        if cell.seed == 1 or cell.variant is None:
            train(cell, "mtkd", [0.6 if cell.variant is None else 0.7])
    told = {
        row["variant"]: row
        for row in model_selection.compare_settings(
            model_selection.compute_dev_scores([build_run_graph(cell) for cell in cells])
        )
    }
    assert told["half"]["cells"] == 1 and told[None]["cells"] == 3
    assert told["half"]["difference"] == pytest.approx(0.1) and told["half"]["interval"] is None
    (said,) = model_selection.summary_sentences(list(told.values()))
    assert "one cell gives no interval" in said
    assert model_selection.compute_dev_scores([]) == [] and model_selection.summary_sentences([]) == []


def test_an_interval_that_includes_zero_is_said_to(cells: list[Experiment]):
    for cell in cells:
        train(cell, "mtkd", [0.6 if cell.variant is None else 0.6 + (0.1, -0.08, 0.0)[cell.seed - 1]])
    (said,) = model_selection.summary_sentences(
        model_selection.compare_settings(model_selection.compute_dev_scores([build_run_graph(cell) for cell in cells]))
    )
    assert "includes zero" in said


def test_mean_interval_against_the_normal_one():
    import numpy as np

    values = np.random.default_rng(0).normal(0.3, 0.1, 400)
    low, high = metrics.bootstrap_mean_interval(values) or (0.0, 0.0)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert metrics.bootstrap_mean_interval(values[:1]) is None
