"""Comparison of student settings on dev, and the student that dev selects.

Epochs, settings and the served student are selected on dev; test scores select nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import numpy as np

from lakd_ray import metrics
from lakd_ray.labels import MEAN_OVER_LANGUAGES
from lakd_ray.report import curves
from lakd_ray.report.predictions import TEACHER
from lakd_ray.report.result_table import ResultRow, format_percent, format_title
from lakd_ray.runs.graph import RunGraph
from lakd_ray.runs.state import RunState, select_best_run

Cell = tuple[int, int]  # fold, seed


@dataclass(frozen=True)
class DevScores:
    """UR on dev of one student setting, at its best epoch, by cell."""

    paradigm: str
    setup: str
    variant: str | None
    UR: dict[Cell, float] = field(default_factory=dict)
    """By cell; the mean over languages for monolingual students."""


def compute_dev_scores(cells: Sequence[RunGraph]) -> list[DevScores]:
    """Return the dev scores of every student setting, without the cells in which one of its runs is not trained."""
    settings: dict[tuple[str, str, str | None], DevScores] = {}
    for cell in cells:
        by_setup: dict[tuple[str, str], list[float | None]] = {}
        for run in cell.students:
            run_curves = curves.read_curves([run], cell.config)
            best = float(np.nanmax(run_curves[0].dev_UR)) if run_curves else None
            by_setup.setdefault((run.paradigm, run.setup), []).append(best)
        for (paradigm, setup), scores in by_setup.items():
            key = (paradigm, setup, cell.config.variant)
            known = [score for score in scores if score is not None]
            setting = settings.setdefault(key, DevScores(*key))
            if len(known) == len(scores):
                setting.UR[cell.config.fold, cell.config.seed] = mean(known)
    return [setting for setting in settings.values() if setting.UR]


def compare_settings(dev_scores: Sequence[DevScores]) -> list[dict[str, Any]]:
    """Compare each setting with the base settings of its paradigm and set-up; the best of each comes first.

    Returns:
        Rows `{paradigm, setup, variant, cells, UR, difference, interval}` of plain JSON types: `difference` is the mean
        over the cells that both have, `interval` its 95 % bootstrap over cells. Both are null for the base settings and
        for variants that do not change the run.
    """
    base = {(scores.paradigm, scores.setup): scores for scores in dev_scores if scores.variant is None}
    rows = [_compare_with_base(scores, base.get((scores.paradigm, scores.setup))) for scores in dev_scores]
    order = list(dict.fromkeys((scores.paradigm, scores.setup) for scores in dev_scores))
    return sorted(rows, key=lambda row: (order.index((row["paradigm"], row["setup"])), -row["UR"]))


def _compare_with_base(candidate: DevScores, base: DevScores | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "paradigm": candidate.paradigm,
        "setup": candidate.setup,
        "variant": candidate.variant,
        "cells": len(candidate.UR),
        "UR": mean(candidate.UR.values()),
        "difference": None,
        "interval": None,
    }
    shared = sorted(candidate.UR.keys() & base.UR.keys()) if base and base is not candidate else []
    if base and shared:
        differences_A = np.array([candidate.UR[cell] - base.UR[cell] for cell in shared])
        row["difference"] = float(differences_A.mean())
        bounds = metrics.bootstrap_mean_interval(differences_A)
        row["interval"] = None if bounds is None else list(bounds)
    return row


def describe_best_students(
    graph: RunGraph,
    results: Sequence[ResultRow],
    pooled: Sequence[ResultRow],
    dev_rows: Sequence[dict[str, Any]],
) -> list[str]:
    """Name the best student on test, the one that dev selects and `lakd serve` uses, and why they may differ.

    Args:
        graph: runs of the fold and seed to serve.
        results: result rows of all runs.
        pooled: result rows of all settings.
        dev_rows: rows of `compare_settings`.
    """
    students = [row for row in pooled if row["language"] == MEAN_OVER_LANGUAGES and row["paradigm"] != TEACHER]
    best = max(students, key=lambda row: row["UR"])
    bounds = best["UR_interval"]
    interval = f" (95 % interval {format_percent(bounds[0])} to {format_percent(bounds[1])})" if bounds else ""
    best_title = format_title(best["paradigm"], best["setup"], best["variant"])
    sentences = [
        f"Best student on test: {best_title}, with UR {format_percent(best['UR'])} %{interval} "
        f"and WR {format_percent(best['WR'])} % as means over languages."
    ]
    selected = []
    if any(row["cells"] > 1 for row in dev_rows):
        top = max(dev_rows, key=lambda row: row["UR"])
        selected.append(format_title(top["paradigm"], top["setup"], top["variant"]))
        sentences.append(
            f"Best student on dev: {selected[0]}, with a mean UR of {format_percent(top['UR'])} % over "
            f"{top['cells']} cells."
        )
    run = select_best_run(graph.students, graph.config)
    epochs = RunState.read(run.folder(graph.config)).metrics
    if epochs:
        selected.append(format_title(run.paradigm, run.setup, run.variant))
        dev_UR = max(epoch["dev_UR"] for epoch in epochs)
        test_UR = next(
            (row["UR"] for row in results if row["model"] == run.id and row["language"] == MEAN_OVER_LANGUAGES), None
        )
        sentences.append(
            f"Selected on dev in fold {graph.config.fold} with seed {graph.config.seed}, and used by `lakd serve`: "
            f"{selected[-1]} ({run.id}), with UR {format_percent(dev_UR)} % on dev and {format_percent(test_UR)} % on "
            "test."
        )
    if any(title != best_title for title in selected):
        sentences.append(
            "Dev and test disagree on the best student. Students are selected on dev, because the test score of a "
            "student that is selected on test is optimistic."
        )
    return sentences


def summary_sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Name the settings that dev selects, for each paradigm and set-up with more than one."""
    sentences = []
    for paradigm, setup in dict.fromkeys((row["paradigm"], row["setup"]) for row in rows):
        settings = [row for row in rows if (row["paradigm"], row["setup"]) == (paradigm, setup)]
        if len(settings) > 1:
            sentences.append(_describe_selection(settings))
    return sentences


def _describe_selection(rows: Sequence[dict[str, Any]]) -> str:
    best = rows[0]
    name = format_title(best["paradigm"], best["setup"])
    if best["variant"] is None:
        return f"On dev, the base settings are the best of {len(rows)} settings of {name}."
    sentence = f"On dev, {best['variant']} is the best of {len(rows)} settings of {name}"
    if best["difference"] is None:
        return f"{sentence}."
    sentence += f": {100 * best['difference']:+.1f} points of UR compared with the base settings"
    if best["interval"] is None:
        return f"{sentence}; one cell gives no interval."
    low, high = (100 * bound for bound in best["interval"])
    verdict = "" if low > 0 else "; not significant, the interval includes zero"
    return f"{sentence}, 95 % interval {low:+.1f} to {high:+.1f} over {best['cells']} cells{verdict}."
