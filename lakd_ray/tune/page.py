"""`lakd tune-report`: a search as one self-contained HTML page. Asks nothing of the network."""

from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lakd_ray import storage
from lakd_ray.config import Dimension, Experiment
from lakd_ray.errors import StageError
from lakd_ray.report.pictures import FAINT, INK, Picture, plain, png, title_of
from lakd_ray.tune import outcome
from lakd_ray.tune.study import FILE, Study, Trial

PAGE, TEMPLATE = "tune.html", "tune.html.j2"
_MAP = "viridis"
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}


def write(config: Experiment, notes: Sequence[str] = (), confirmed: outcome.Confirmed | None = None) -> str:
    """Draw the search as it stands, finished or not; returns where the page lies.

    Raises:
        StageError: there is no search.
    """
    folder = config.stage_folder("tune")
    if not config.tune.study and not storage.exists(storage.join(folder, FILE)):
        raise StageError(f"there is no search in {folder}: run `lakd tune` first")
    study = Study(config, folder)
    try:
        location = storage.join(folder, PAGE)
        storage.write_bytes(location, _render(config, study, notes, confirmed or {}).encode())
    finally:
        study.close()
    return location


def _render(config: Experiment, study: Study, notes: Sequence[str], confirmed: outcome.Confirmed) -> str:
    trials = study.trials()
    best = outcome.ranked(trials, confirmed)
    pictures = [learning(trials, best[0].number)] if best else []
    if len(best) > 1:
        pictures.insert(0, parallel(config, best))
    if importances := study.importance():
        pictures.append(importance(importances))
    if config.tune.against and best:
        pictures.append(pareto(trials, config.tune.against))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("lakd_ray.tune").joinpath(TEMPLATE).read_text(encoding="utf-8")
    others = [trial for trial in trials if trial not in best]
    return environment.from_string(template).render(
        config=config,
        notes=notes,
        pictures=pictures,
        trials=[*best, *others],
        confirmed=confirmed,
        keys=list(config.tune.space),
        short={key: key.rpartition(".")[2] for key in config.tune.space},
        best=outcome.best_file(config, best[0].settings, notes) if best else "",
        study=config.tune.study or f"sqlite:///{storage.join(config.stage_folder('tune'), FILE)}",
        shown=shown,
    )


def shown(value: Any) -> str:
    """A setting's value in a table."""
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def parallel(config: Experiment, trials: Sequence[Trial]) -> Picture:
    """Every trial as a line through its settings, coloured by its objective; the best is drawn last and thick."""
    space = config.tune.space
    figure = Figure(figsize=(1.5 + 1.5 * len(space), 3.6), layout="constrained")
    axes = figure.add_subplot()
    scores = np.array([trial.objective for trial in trials], dtype=float)
    scale = Normalize(scores.min(), max(scores.max(), scores.min() + 1e-9))
    from matplotlib import colormaps

    for trial in reversed(trials):
        heights = [_height(space[key], trial.settings.get(key)) for key in space] + [float(scale(trial.objective or 0))]
        top = trial is trials[0]
        colour = colormaps[_MAP](float(scale(trial.objective or 0)))
        axes.plot(range(len(heights)), heights, color=colour, linewidth=2.6 if top else 1.0, alpha=1 if top else 0.6)
    for place, (key, each) in enumerate(space.items()):
        axes.vlines(place, 0, 1, color=FAINT, linewidth=0.8)
        for height, label in _ticks(each):
            axes.text(place + 0.04, height, label, fontsize=8, color=INK, va="center", bbox=_BEHIND)
        axes.text(place, -0.1, key.rpartition(".")[2], fontsize=9, color=INK, ha="center", va="top")
    end = len(space)
    axes.vlines(end, 0, 1, color=FAINT, linewidth=0.8)
    for height, score in ((0, scores.min()), (1, scores.max())):
        axes.text(end + 0.04, height, f"{100 * score:.1f}", fontsize=8, color=INK, va="center")
    axes.text(end, -0.1, "UR on dev, %", fontsize=9, color=INK, ha="center", va="top")
    axes.set_xlim(-0.3, end + 0.5)
    axes.set_ylim(-0.25, 1.08)
    axes.axis("off")
    title_of(axes, "Settings of every trial")
    return png(figure, f"Parallel coordinates of {len(trials)} trials; the best has {trials[0].settings}.")


def _height(each: Dimension, value: Any) -> float:
    """Where a value lies on its axis; not a number where the setting did not apply."""
    if value is None and None not in each.choices:
        return float("nan")
    if each.choices:
        return list(each.choices).index(value) / (len(each.choices) - 1)
    low, high, at = (float(number or 0) for number in (each.low, each.high, value))
    if each.log:
        low, high, at = np.log(low), np.log(high), np.log(at)
    return float((at - low) / (high - low))


def _ticks(each: Dimension) -> list[tuple[float, str]]:
    values = each.choices or (each.low, each.high)
    return [(_height(each, value), shown(value)) for value in values]


def learning(trials: Sequence[Trial], best: int) -> Picture:
    """The highest objective so far after each epoch; stopped trials end early, the best and the first are named."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for trial in sorted(trials, key=lambda one: one.number in (0, best)):
        if not trial.curve:
            continue
        colour = {best: "#0072B2", 0: "#D55E00"}.get(trial.number, "#b5bac0")
        named = trial.number in (0, best)
        label = f"#{trial.number}" + (" the best" if trial.number == best else " the first") if named else None
        epochs = range(1, len(trial.curve) + 1)
        axes.plot(
            epochs, 100 * np.array(trial.curve), color=colour, linewidth=2 if named else 1, marker=".", label=label
        )
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_ylabel("highest UR on dev so far, %", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    title_of(axes, "Learning curves")
    plain(axes)
    return png(figure, f"Learning curves of {len(trials)} trials.")


def importance(importances: dict[str, float]) -> Picture:
    """How much each setting moves the objective."""
    ordered = sorted(importances.items(), key=lambda entry: entry[1])
    figure = Figure(figsize=(5.6, 0.9 + 0.36 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(ordered)), [value for _, value in ordered], color="#0072B2", height=0.65)
    axes.set_yticks(range(len(ordered)), [key.rpartition(".")[2] for key, _ in ordered])
    axes.set_xlim(left=0)
    axes.set_xlabel("share of the variance among the best trials (PED-ANOVA)", fontsize=9)
    title_of(axes, "Importance")
    plain(axes)
    return png(figure, "Importance: " + ", ".join(f"{key} {value:.2f}" for key, value in reversed(ordered)) + ".")


def pareto(trials: Sequence[Trial], against: str) -> Picture:
    """Recall against the second objective; what nothing beats in both is joined."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    ended = [trial for trial in trials if trial.cost is not None]
    unbeaten = outcome.front(trials)
    axes.scatter([one.cost or 0 for one in ended], [100 * (one.objective or 0) for one in ended], color="#b5bac0", s=22)
    axes.plot(
        [one.cost or 0 for one in unbeaten], [100 * (one.objective or 0) for one in unbeaten],
        color="#0072B2", marker="o", drawstyle="steps-post",
    )  # fmt: skip
    axes.set_xlabel({"size": "parameters", "latency": "ms for a clip of 5 s"}[against], fontsize=9)
    axes.set_ylabel("UR on dev, %", fontsize=9)
    title_of(axes, "Not beaten in both")
    plain(axes)
    return png(figure, f"Recall against {against}; {len(unbeaten)} of {len(ended)} trials are not beaten in both.")
