"""Comparison of settings on dev, from the metrics files of runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from lakd_ray import storage
from lakd_ray.config import Experiment, with_variant
from lakd_ray.report import model_selection
from lakd_ray.report.verdicts import decide
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
    rows = model_selection.compare_settings(
        model_selection.compute_dev_scores([build_run_graph(cell) for cell in cells])
    )
    decide([row for row in rows if row["verdict"]])
    return rows


def test_the_best_epoch_counts_and_differences_are_paired(cells: list[Experiment]):
    for cell in cells:
        base = 0.5 + 0.1 * cell.seed  # seeds differ much more than settings
        gain = {None: 0.0, "uniform": 0.018 + 0.001 * cell.seed, "half": -0.05}[cell.variant]
        train(cell, "mtkd", [0.3, base + gain, 0.4])
        train(cell, "ft", [base])
    rows = compare(cells)
    mtkd = [row for row in rows if row["paradigm"] == "mtkd"]
    assert [row["variant"] for row in mtkd] == ["uniform", None, "half"]
    assert [row["UR"] for row in mtkd] == pytest.approx([0.72, 0.70, 0.65])
    assert [row["cells"] for row in mtkd] == [3, 3, 3]
    half = 4.302653 * 0.001 / 3**0.5
    assert mtkd[0]["difference"] == pytest.approx(0.02)
    assert mtkd[0]["interval"] == pytest.approx([0.02 - half, 0.02 + half])
    assert mtkd[0]["seeds"] == 3 and mtkd[0]["verdict"] == "better"
    assert mtkd[2]["interval"] is None  # the same difference with every seed is no certainty
    assert mtkd[2]["verdict"] == "no verdict: no variation over seeds and speakers"
    assert mtkd[1]["difference"] is None
    ft_sentence, mtkd_sentence = model_selection.summary_sentences(rows)
    assert "the base settings are the best" in ft_sentence
    assert (
        "uniform is the best of 3 settings of MTKD multilingual: compared with the base settings +2.0" in mtkd_sentence
    )
    assert mtkd_sentence.endswith("over 3 seeds; better (p < 0.001).")


def test_cells_with_untrained_runs_are_left_out(cells: list[Experiment]):
    for cell in cells:
        if cell.seed == 1 or cell.variant is None:
            train(cell, "mtkd", [0.6 if cell.variant is None else 0.7])
    rows = {row["variant"]: row for row in compare(cells)}
    assert rows["half"]["cells"] == 1 and rows[None]["cells"] == 3
    assert rows["half"]["difference"] == pytest.approx(0.1) and rows["half"]["interval"] is None
    (sentence,) = model_selection.summary_sentences(compare(cells))
    assert sentence == (
        "On dev, the base settings are the best of 3 settings of MTKD multilingual (2 of them without all cells, which "
        "are not ranked)."
    )
    assert rows[None]["selected"] and not rows["half"]["selected"]
    assert model_selection.compute_dev_scores([]) == [] and model_selection.summary_sentences([]) == []


def test_differences_are_tested_over_seeds(cells: list[Experiment]):
    for cell in cells:
        train(cell, "mtkd", [0.6 if cell.variant is None else 0.6 + (0.1, -0.08, 0.0)[cell.seed - 1]])
    rows = compare(cells)
    expected = stats.ttest_1samp([0.1, -0.08, 0.0], 0)
    assert [row["p_value"] for row in rows if row["variant"]] == pytest.approx([expected.pvalue] * 2)
    assert [row["p_adjusted"] for row in rows if row["variant"]] == pytest.approx([1.0] * 2)  # of two tests
    assert rows[0]["interval"] == pytest.approx(list(expected.confidence_interval()))
    (sentence,) = model_selection.summary_sentences(rows)
    assert sentence.endswith("over 3 seeds; undecided (p = 1.00).")


def test_seeds_are_compared_over_the_same_folds(cells: list[Experiment]):
    folds = [cell.model_copy(update={"fold": fold}) for fold in (0, 1) for cell in cells]
    for cell in folds:
        gain = 0.0 if cell.variant is None else 0.01 * cell.seed + 0.5 * cell.fold
        if (cell.fold, cell.seed, cell.variant) != (1, 2, "half"):
            train(cell, "mtkd", [0.2 + gain])
    (half,) = [row for row in compare(folds) if row["variant"] == "half"]
    assert half["cells"] == 5 and half["difference"] == pytest.approx(0.02)  # over fold 0 alone


def test_settings_that_lack_different_cells_are_not_compared(cells: list[Experiment]):
    for cell in cells:
        if (cell.seed, cell.variant) not in ((1, None), (2, "half"), (3, "uniform")):
            train(cell, "mtkd", [0.1 * cell.seed])
    rows = compare(cells)
    assert [row["cells"] for row in rows] == [2, 2, 2] and model_selection.find_selected(rows) is None


def test_folds_of_a_seed_are_one_value(cells: list[Experiment]):
    """Folds share dev and training speakers, so they are no independent repetitions."""
    for cell in (*cells, *(cell.model_copy(update={"fold": 1}) for cell in cells)):
        gain = 0.0 if cell.variant is None else 0.01 * cell.seed + 0.05 * cell.fold
        train(cell, "mtkd", [0.6 + gain])
    rows = compare([*cells, *(cell.model_copy(update={"fold": 1}) for cell in cells)])
    (half,) = [row for row in rows if row["variant"] == "half"]
    assert half["cells"] == 6 and half["seeds"] == 3
    expected = stats.t.interval(0.95, 2, 0.045, stats.sem([0.035, 0.045, 0.055]))
    assert half["interval"] == pytest.approx(list(expected))
