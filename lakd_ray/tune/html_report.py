"""Render a search as one self-contained HTML page, which makes no network requests."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lakd_ray import storage
from lakd_ray.config import Dimension, Experiment
from lakd_ray.errors import StageError
from lakd_ray.report.figures import FAINT, INK, EmbeddedImage, draw_title, render_png, style_axes
from lakd_ray.tune import results
from lakd_ray.tune.database import sqlite_url
from lakd_ray.tune.study import STUDY_FILE, Study, Trial

HTML_FILE, TEMPLATE = "tune.html", "tune.html.j2"
_COLORMAP = "viridis"
_LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}


def write_html_report(
    config: Experiment, notes: Sequence[str] = (), seed_objectives: results.SeedObjectives | None = None
) -> str:
    """Write the page of a search, which may still be running, and return its location.

    Raises:
        StageError: the experiment has no search.
    """
    folder = config.stage_folder("tune")
    if not config.tune.study_storage and not storage.exists(storage.join(folder, STUDY_FILE)):
        raise StageError(f"{folder} contains no search: run `lakd tune` first")
    study = Study(config, folder)
    try:
        location = storage.join(folder, HTML_FILE)
        storage.write_bytes(location, _render(config, study, notes, seed_objectives or {}).encode())
    finally:
        study.close()
    return location


def _render(config: Experiment, study: Study, notes: Sequence[str], seed_objectives: results.SeedObjectives) -> str:
    trials = study.get_trials()
    best = results.rank_trials(trials, seed_objectives)
    figures = [draw_learning_curves(trials, best[0].number)] if best else []
    if len(best) > 1:
        figures.insert(0, draw_parallel_coordinates(config, best))
    if importances := study.get_param_importances():
        figures.append(draw_importances(importances))
    if config.tune.second_objective and best:
        figures.append(draw_pareto_front(trials, config.tune.second_objective))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("lakd_ray.tune").joinpath(TEMPLATE).read_text(encoding="utf-8")
    others = [trial for trial in trials if trial not in best]
    return environment.from_string(template).render(
        config=config,
        notes=notes,
        figures=figures,
        trials=[*best, *others],
        seed_objectives=seed_objectives,
        keys=list(config.tune.space),
        short={key: key.rpartition(".")[2] for key in config.tune.space},
        best=results.format_best_config(config, best[0].settings, notes) if best else "",
        study=config.tune.study_storage or _study_url(config),
        format_value=format_value,
    )


def _study_url(config: Experiment) -> str:
    location = storage.join(config.stage_folder("tune"), STUDY_FILE)
    return f"sqlite:///{STUDY_FILE}" if storage.is_remote(location) else sqlite_url(Path(location))


def format_value(value: Any) -> str:
    """Format a setting's value for a table."""
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def draw_parallel_coordinates(config: Experiment, trials: Sequence[Trial]) -> EmbeddedImage:
    """Draw every trial as a line through its settings, colored by its objective; the best is the thick line on top."""
    space = config.tune.space
    figure = Figure(figsize=(1.5 + 1.5 * len(space), 3.6), layout="constrained")
    axes = figure.add_subplot()
    scores = np.array([trial.objective for trial in trials], dtype=float)
    scale = Normalize(scores.min(), max(scores.max(), scores.min() + 1e-9))
    from matplotlib import colormaps

    for trial in reversed(trials):
        heights = [_axis_position(space[key], trial.settings.get(key)) for key in space] + [
            float(scale(trial.objective or 0))
        ]
        is_best = trial is trials[0]
        color = colormaps[_COLORMAP](float(scale(trial.objective or 0)))
        axes.plot(
            range(len(heights)), heights, color=color, linewidth=2.6 if is_best else 1.0, alpha=1 if is_best else 0.6
        )
    for position, (key, dimension) in enumerate(space.items()):
        axes.vlines(position, 0, 1, color=FAINT, linewidth=0.8)
        for height, label in _axis_ticks(dimension):
            axes.text(position + 0.04, height, label, fontsize=8, color=INK, va="center", bbox=_LABEL_BOX)
        axes.text(position, -0.1, key.rpartition(".")[2], fontsize=9, color=INK, ha="center", va="top")
    end = len(space)
    axes.vlines(end, 0, 1, color=FAINT, linewidth=0.8)
    for height, score in ((0, scores.min()), (1, scores.max())):
        axes.text(end + 0.04, height, f"{100 * score:.1f}", fontsize=8, color=INK, va="center")
    axes.text(end, -0.1, "UR on dev, %", fontsize=9, color=INK, ha="center", va="top")
    axes.set_xlim(-0.3, end + 0.5)
    axes.set_ylim(-0.25, 1.08)
    axes.axis("off")
    draw_title(axes, "Settings of every trial")
    return render_png(figure, f"Parallel coordinates of {len(trials)} trials; the best has {trials[0].settings}.")


def _axis_position(dimension: Dimension, value: Any) -> float:
    """Return the position of a value on its axis, from 0 to 1; NaN if the setting did not apply."""
    if value is None and None not in dimension.choices:
        return float("nan")
    if dimension.choices:
        return list(dimension.choices).index(value) / (len(dimension.choices) - 1)
    low, high, at = (float(number or 0) for number in (dimension.low, dimension.high, value))
    if dimension.log:
        low, high, at = np.log(low), np.log(high), np.log(at)
    return float((at - low) / (high - low))


def _axis_ticks(dimension: Dimension) -> list[tuple[float, str]]:
    values = dimension.choices or (dimension.low, dimension.high)
    return [(_axis_position(dimension, value), format_value(value)) for value in values]


def draw_learning_curves(trials: Sequence[Trial], best_number: int) -> EmbeddedImage:
    """Draw the highest objective so far after each epoch; the best trial and the first one are labeled."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for trial in sorted(trials, key=lambda trial: trial.number in (0, best_number)):
        if not trial.curve:
            continue
        color = {best_number: "#0072B2", 0: "#D55E00"}.get(trial.number, "#b5bac0")
        named = trial.number in (0, best_number)
        label = f"#{trial.number}" + (" the best" if trial.number == best_number else " the first") if named else None
        epochs = range(1, len(trial.curve) + 1)
        axes.plot(
            epochs, 100 * np.array(trial.curve), color=color, linewidth=2 if named else 1, marker=".", label=label
        )
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_ylabel("highest UR on dev so far, %", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    draw_title(axes, "Learning curves")
    style_axes(axes)
    return render_png(figure, f"Learning curves of {len(trials)} trials.")


def draw_importances(importances: dict[str, float]) -> EmbeddedImage:
    """Draw the importance of each setting for the objective."""
    ordered = sorted(importances.items(), key=lambda entry: entry[1])
    figure = Figure(figsize=(5.6, 0.9 + 0.36 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(ordered)), [value for _, value in ordered], color="#0072B2", height=0.65)
    axes.set_yticks(range(len(ordered)), [key.rpartition(".")[2] for key, _ in ordered])
    axes.set_xlim(left=0)
    axes.set_xlabel("share of the variance among the best trials (PED-ANOVA)", fontsize=9)
    draw_title(axes, "Importance")
    style_axes(axes)
    return render_png(
        figure, "Importance: " + ", ".join(f"{key} {value:.2f}" for key, value in reversed(ordered)) + "."
    )


def draw_pareto_front(trials: Sequence[Trial], second_objective: str) -> EmbeddedImage:
    """Draw recall against the second objective; a line joins the Pareto front."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    ended = [trial for trial in trials if trial.cost is not None]
    front = results.pareto_front(trials)
    axes.scatter(
        [trial.cost or 0 for trial in ended], [100 * (trial.objective or 0) for trial in ended], color="#b5bac0", s=22
    )
    axes.plot(
        [trial.cost or 0 for trial in front], [100 * (trial.objective or 0) for trial in front],
        color="#0072B2", marker="o", drawstyle="steps-post",
    )  # fmt: skip
    axes.set_xlabel({"size": "parameters", "latency": "ms for a clip of 5 s"}[second_objective], fontsize=9)
    axes.set_ylabel("UR on dev, %", fontsize=9)
    draw_title(axes, "Pareto front")
    style_axes(axes)
    return render_png(
        figure, f"Recall against {second_objective}; {len(front)} of {len(ended)} trials are on the Pareto front."
    )
