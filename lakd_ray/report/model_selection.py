"""Which settings dev prefers. Epochs and settings are chosen there; what test says of them chooses nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import numpy as np

from lakd_ray import metrics
from lakd_ray.report import curves
from lakd_ray.report.rows import format_title
from lakd_ray.runs.graph import RunGraph

Cell = tuple[int, int]  # fold, seed


@dataclass(frozen=True)
class DevScores:
    """A paradigm in a set-up with some settings: UR on dev of its best epoch, in each cell."""

    paradigm: str
    setup: str
    variant: str | None
    UR: dict[Cell, float] = field(default_factory=dict)
    """Monolingual students count as one: the mean over their languages."""


def compute_dev_scores(cells: Sequence[RunGraph]) -> list[DevScores]:
    """Every student setting of the grid; cells with a run that is not trained are left out of its scores."""
    found: dict[tuple[str, str, str | None], DevScores] = {}
    for graph in cells:
        cell = graph.config
        together: dict[tuple[str, str], list[float | None]] = {}
        for run in graph.students:
            told = curves.read_curves([run], cell)
            best = float(np.nanmax(told[0].dev_UR)) if told else None
            together.setdefault((run.paradigm, run.setup), []).append(best)
        for (paradigm, setup), scores in together.items():
            key = (paradigm, setup, cell.variant)
            known = [score for score in scores if score is not None]
            standing = found.setdefault(key, DevScores(*key))
            if len(known) == len(scores):
                standing.UR[cell.fold, cell.seed] = mean(known)
    return [standing for standing in found.values() if standing.UR]


def compare_settings(dev_scores: Sequence[DevScores]) -> list[dict[str, Any]]:
    """Plain JSON, the best of each paradigm and set-up first.

    `{paradigm, setup, variant, cells, UR, difference, interval}`: `difference` is to the experiment's own settings, in
    the cells that both have; `interval` its 95 % bootstrap over cells. Null for the own settings, and for those that
    are trained as the own.
    """
    own = {(one.paradigm, one.setup): one for one in dev_scores if one.variant is None}
    told = [_compare_with_base(one, own.get((one.paradigm, one.setup))) for one in dev_scores]
    place = {pair: number for number, pair in enumerate(dict.fromkeys((one.paradigm, one.setup) for one in dev_scores))}
    return sorted(told, key=lambda row: (place[row["paradigm"], row["setup"]], -row["UR"]))


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


def summary_sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What dev would choose, where there is a choice."""
    said = []
    for paradigm, setup in dict.fromkeys((row["paradigm"], row["setup"]) for row in rows):
        choice = [row for row in rows if (row["paradigm"], row["setup"]) == (paradigm, setup)]
        if len(choice) > 1:
            said.append(_describe_choice(choice))
    return said


def _describe_choice(rows: Sequence[dict[str, Any]]) -> str:
    best = rows[0]
    name = format_title(best["paradigm"], best["setup"])
    if best["variant"] is None:
        return f"On dev, of {len(rows)} settings of {name} the experiment's own are the best."
    sentence = f"On dev, of {len(rows)} settings of {name} {best['variant']} is the best"
    if best["difference"] is None:
        return f"{sentence}."
    sentence += f": {100 * best['difference']:+.1f} points of UR against the experiment's own"
    if best["interval"] is None:
        return f"{sentence}; one cell gives no interval."
    low, high = (100 * bound for bound in best["interval"])
    verdict = "" if low > 0 else ", which includes zero: dev does not decide between the two"
    return f"{sentence}, 95 % interval over {best['cells']} cells {low:+.1f} to {high:+.1f}{verdict}."
