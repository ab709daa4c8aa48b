"""Training curves, read from the metrics files of runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.runs.graph import Run
from lakd_ray.runs.layout import METRICS_FILE


@dataclass(frozen=True)
class Curve:
    """Metrics of a run by epoch. Missing values are NaN, which leaves a gap in the plotted line."""

    run_id: str
    epochs: list[int]
    loss: list[float]
    dev_UR: list[float]
    dev_recall: dict[str, list[float]]
    """UR on dev by language."""


def read_curves(runs: Sequence[Run], config: Experiment) -> list[Curve]:
    """Return the curve of each distinct run that has a metrics file."""
    curves = []
    for run in {run.id: run for run in runs}.values():
        location = storage.join(run.folder(config), METRICS_FILE)
        if storage.exists(location):
            epochs = _parse_epochs(storage.read_bytes(location).decode())
            if epochs:
                curves.append(_build_curve(run.id, epochs))
    return curves


def _parse_epochs(text: str) -> list[dict[str, Any]]:
    """Return the entries by epoch; of two entries of one epoch, which a resumed run may write, the later counts."""
    entries: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the last line of an interrupted run may be incomplete
            continue
        if isinstance(entry, dict) and isinstance(entry.get("epoch"), int):
            entries[entry["epoch"]] = entry
    return [entries[epoch] for epoch in sorted(entries)]


def _build_curve(run_id: str, epochs: list[dict[str, Any]]) -> Curve:
    by_language = [entry.get("dev_recall") or {} for entry in epochs]
    languages = dict.fromkeys(language for recalls in by_language for language in recalls)
    return Curve(
        run_id=run_id,
        epochs=[entry["epoch"] for entry in epochs],
        loss=[_to_float(entry.get("loss")) for entry in epochs],
        dev_UR=[_to_float(entry.get("dev_UR")) for entry in epochs],
        dev_recall={language: [_to_float(recalls.get(language)) for recalls in by_language] for language in languages},
    )


def _to_float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and isfinite(value) else nan
