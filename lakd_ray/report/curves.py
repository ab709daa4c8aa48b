"""Training curves, from the metrics that runs leave beside their checkpoints."""

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
    """One run's epochs. Values that were not written are NaN: they leave a gap in the line."""

    run_id: str
    epochs: list[int]
    loss: list[float]
    dev_UR: list[float]
    dev_recall: dict[str, list[float]]
    """UR on dev by language."""


def read_curves(runs: Sequence[Run], config: Experiment) -> list[Curve]:
    """The curves of those runs that left any, each run once."""
    curves = []
    for run in {run.id: run for run in runs}.values():
        location = storage.join(run.folder(config), METRICS_FILE)
        if storage.exists(location):
            epochs = _parse_epochs(storage.read_bytes(location).decode())
            if epochs:
                curves.append(_build_curve(run.id, epochs))
    return curves


def _parse_epochs(text: str) -> list[dict[str, Any]]:
    """Entries by epoch. A run that went on after a failure may have written one twice: the later counts."""
    found: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the last line of a run that was cut off
            continue
        if isinstance(entry, dict) and isinstance(entry.get("epoch"), int):
            found[entry["epoch"]] = entry
    return [found[epoch] for epoch in sorted(found)]


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
