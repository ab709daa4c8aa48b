"""Comparison of student settings on dev, and the student that dev selects.

Epochs, settings and the served student are selected on dev, by the mean of UR over languages; test scores select
nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import numpy as np

from lakd_ray.labels import MEAN_OVER_LANGUAGES
from lakd_ray.report import curves
from lakd_ray.report.predictions import TEACHER
from lakd_ray.report.result_table import ResultRow, format_percent, format_title
from lakd_ray.report.verdicts import TEST_COLUMNS, build_test, count_of, describe_test
from lakd_ray.runs.graph import Run, RunGraph
from lakd_ray.runs.state import RunState, select_served_student
from lakd_ray.statistics import standard_error_over_seeds

Cell = tuple[int, int]  # fold, seed


@dataclass(frozen=True)
class DevScores:
    """UR on dev of one student setting, at its best epoch, by cell."""

    paradigm: str
    setup: str
    variant: str | None
    UR: dict[Cell, float] = field(default_factory=dict)
    """By cell; the mean over languages, of one multilingual student or of all monolingual ones."""


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
        Rows `{paradigm, setup, variant, cells, UR, selected, ...}` of plain JSON types, with the columns of `verdicts`.
        `selected` is true for the setting with the highest UR of those that have all cells; those that lack cells,
        because runs failed, come last. The difference is over the folds that both have with every shared seed, its
        interval is a t interval over seeds, each the mean over these folds. It is about these dev speakers, which are
        the same for all seeds. The columns are null for the base settings and for variants that do not change the run.
    """
    base = {(scores.paradigm, scores.setup): scores for scores in dev_scores if scores.variant is None}
    rows = [_compare_with_base(scores, base.get((scores.paradigm, scores.setup))) for scores in dev_scores]
    cells = len({cell for scores in dev_scores for cell in scores.UR})
    if complete := [row for row in rows if row["cells"] == cells]:
        max(complete, key=lambda row: float(row["UR"]))["selected"] = True
    order = list(dict.fromkeys((scores.paradigm, scores.setup) for scores in dev_scores))
    return sorted(
        rows, key=lambda row: (order.index((row["paradigm"], row["setup"])), row["cells"] < cells, -row["UR"])
    )


def _compare_with_base(candidate: DevScores, base: DevScores | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "paradigm": candidate.paradigm,
        "setup": candidate.setup,
        "variant": candidate.variant,
        "cells": len(candidate.UR),
        "UR": mean(candidate.UR.values()),
        "selected": False,
        **dict.fromkeys(TEST_COLUMNS),
    }
    if base and base is not candidate and (shared := _shared_cells(candidate, base)):
        folds, seeds = shared
        differences_A = np.array(
            [mean(candidate.UR[fold, seed] - base.UR[fold, seed] for fold in folds) for seed in seeds]
        )
        errors = standard_error_over_seeds(differences_A) if len(differences_A) > 1 else None
        row |= build_test(float(differences_A.mean()), errors, len(differences_A), "one seed")
    return row


def _shared_cells(first: DevScores, second: DevScores) -> tuple[list[int], list[int]] | None:
    """Return folds and seeds of which both have all combinations, so that each seed is a mean over the same folds."""
    folds: dict[int, set[int]] = {}
    for fold, seed in first.UR.keys() & second.UR.keys():
        folds.setdefault(seed, set()).add(fold)
    shared = set.intersection(*folds.values()) if folds else set()
    return (sorted(shared), sorted(folds)) if shared else None


def describe_selected_students(
    graph: RunGraph,
    results: Sequence[ResultRow],
    pooled: Sequence[ResultRow],
    dev_rows: Sequence[dict[str, Any]],
) -> list[str]:
    """Name the student that dev selects over all cells, and the one that `lakd serve` uses, with their test scores.

    All scores are means over languages, on dev and on test.

    Args:
        graph: runs of the fold and seed to serve.
        results: result rows of all runs.
        pooled: result rows of all settings.
        dev_rows: rows of `compare_settings`.
    """
    students = [row for row in pooled if row["language"] == MEAN_OVER_LANGUAGES and row["paradigm"] != TEACHER]
    test = {(row["paradigm"], row["setup"], row["variant"]): row for row in students}
    selected = find_selected(dev_rows)
    sentences = [*_describe_selected_setting(selected, test), *_describe_served_student(graph, results, selected)]
    highest = max(students, key=lambda row: row["UR"], default=None)
    chosen = test.get(_setting_key(selected)) if selected else None
    if highest and chosen and highest["UR"] > chosen["UR"]:
        sentences.append(
            f"{format_title(*_setting_key(highest))} has the highest UR on test ({format_percent(highest['UR'])} %), "
            f"but dev does not select it; as the highest of {len(students)} test scores, this one is optimistic."
        )
    return sentences


def _setting_key(row: Mapping[str, Any]) -> tuple[str, str, str | None]:
    return row["paradigm"], row["setup"], row["variant"]


def find_selected(dev_rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the row of the setting that dev selects; None without metrics on dev."""
    return next((row for row in dev_rows if row["selected"]), None)


def _describe_selected_setting(
    selected: Mapping[str, Any] | None, test: Mapping[tuple[str, str, str | None], ResultRow]
) -> list[str]:
    if selected is None:
        return ["No student is selected: none has metrics on dev in all cells."]
    row = test.get(_setting_key(selected))
    bounds = row["UR_interval"] if row else None
    interval = f" (95 % interval {format_percent(bounds[0])} to {format_percent(bounds[1])})" if bounds else ""
    cells = f", the mean over {selected['cells']} cells," if selected["cells"] > 1 else ""
    return [
        f"Selected on dev: {format_title(*_setting_key(selected))}, with UR {format_percent(selected['UR'])} % on "
        f"dev{cells} and {format_percent(row['UR'] if row else None)} %{interval} on test."
    ]


def _describe_served_student(
    graph: RunGraph, results: Sequence[ResultRow], selected: Mapping[str, Any] | None
) -> list[str]:
    run, config = select_served_student(graph), graph.config
    epochs = RunState.read(run.folder(config)).metrics
    if not epochs:
        return []
    if selected and selected["cells"] == 1 and _setting_key(selected) == _run_key(run) and run.setup == "multilingual":
        return [f"`lakd serve` uses it: {run.id}."]
    rows = (row for row in results if row["model"] == run.id and row["language"] == MEAN_OVER_LANGUAGES)
    test_UR = next((row["UR"] for row in rows), None)
    reason = "the best on dev of the students of all languages"
    if set(config.languages) - set(run.languages):
        reason = f"of {', '.join(run.languages)} only, because no student covers all languages"
    elif len(config.languages) == 1:
        reason = "the best student on dev"
    settings = " and the base settings" if config.grid.variants else ""
    dev_UR = max(epoch["dev_UR"] for epoch in epochs)
    return [
        f"Used by `lakd serve`: {run.id} ({format_title(*_run_key(run))}), {reason} in fold {config.fold} with seed "
        f"{config.seed}{settings}, with UR {format_percent(dev_UR)} % on dev and {format_percent(test_UR)} % on test."
    ]


def _run_key(run: Run) -> tuple[str, str, str | None]:
    return run.paradigm, run.setup, run.variant


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
    count = f"{len(rows)} settings of {format_title(best['paradigm'], best['setup'])}"
    if partial := sum(row["cells"] < best["cells"] for row in rows):
        count += f" ({partial} of them without all cells, which are not ranked)"
    if best["variant"] is None:
        return f"On dev, the base settings are the best of {count}."
    sentence = f"On dev, {best['variant']} is the best of {count}"
    if best["difference"] is None:
        return f"{sentence}."
    return f"{sentence}: compared with the base settings {describe_test(best, count_of(best['seeds'], 'seed'))}."
