"""What a search comes to: the winner as an experiment file, and how it compares with the paper's settings."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import mean
from typing import Any

import numpy as np
import yaml

from lakd_ray import metrics
from lakd_ray.config import Experiment, to_dict
from lakd_ray.tune.study import Settings, Trial, build_trial_config, paper_settings

SeedObjectives = Mapping[int, Sequence[float]]  # trial -> its objective with each of the other seeds


def rank_trials(trials: Sequence[Trial], seed_objectives: SeedObjectives | None = None) -> list[Trial]:
    """Trials that ended, the best first: those that were run again by their mean over the other seeds, for their own
    number was chosen as one of the best; then all others."""
    again = seed_objectives or {}

    def key(trial: Trial) -> tuple[bool, float]:
        return trial.number in again, mean(again.get(trial.number, [trial.objective or 0.0]))

    ended = [trial for trial in trials if trial.objective is not None and trial.state in ("complete", "stopped")]
    return sorted(ended, key=key, reverse=True)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats in both objectives, the cheapest first."""
    ended = [trial for trial in trials if trial.cost is not None and trial.objective is not None]
    return sorted(
        (one for one in ended if not any(_dominates(other, one) for other in ended)), key=lambda one: one.cost or 0
    )


def _dominates(trial: Trial, other: Trial) -> bool:
    first, second = ((each.objective or 0.0, -(each.cost or 0.0)) for each in (trial, other))
    return first != second and all(a >= b for a, b in zip(first, second, strict=True))


def find_paper_trial(config: Experiment, trials: Sequence[Trial]) -> Trial | None:
    """The trial with the paper's settings, if it was run."""
    paper = paper_settings(config)
    return next((trial for trial in trials if paper and trial.settings == paper), None)


def compare_with_paper(config: Experiment, trials: Sequence[Trial], seed_objectives: SeedObjectives) -> str:
    """The winner against the paper's settings, or the next best where these win, in a sentence."""
    order, paper = rank_trials(trials, seed_objectives), find_paper_trial(config, trials)
    if paper is None or paper.objective is None:
        return "The paper's settings were not tried: they lie outside of tune.space."
    best, said = order[0], ""
    if best.number == paper.number:
        said = "The paper's settings are the best. "
        others = [trial for trial in order if trial.number in seed_objectives and trial.number != paper.number]
        if paper.number not in seed_objectives or not others:
            return said.strip()
        best = others[0]
    own = 100 * ((best.objective or 0) - paper.objective)
    if best.number not in seed_objectives or paper.number not in seed_objectives:
        return (
            f"On dev trial {best.number} is {own:+.1f} points above the paper's settings, with one seed each: that may "
            "be luck, and the best of many trials is lucky. `tune.reevaluate` would run both with other seeds."
        )
    differences_A = np.array(seed_objectives[best.number]) - np.array(seed_objectives[paper.number])
    bounds = metrics.bootstrap_mean_interval(differences_A)
    seeds = f"{len(differences_A)} other seeds" if len(differences_A) > 1 else "one other seed"
    told = f"{100 * differences_A.mean():+.1f} points against the paper's settings over {seeds}"
    if bounds is None:
        return f"{said}On dev trial {best.number} is {told}, which gives no interval."
    low, high = (100 * bound for bound in bounds)
    verdict = "it beats them" if low > 0 else "it is not shown to beat them"
    return f"{said}On dev trial {best.number} is {told}, 95 % interval {low:+.1f} to {high:+.1f}: {verdict}."


def describe_cost(
    config: Experiment, trials: Sequence[Trial], seed_objectives: SeedObjectives, epoch_seconds: float
) -> str:
    """Audio that the trials were trained on, against one student trained on the full budget, in a sentence."""
    epochs = config.student.optim.epochs
    trained, full = sum(trial.audio_seconds for trial in trials), epoch_seconds * epochs
    told = (
        f"{len(trials)} trials were trained on {trained / 3600:.2f} audio-hours, {trained / full:.1f} times what one "
        f"student on the full budget of {epochs} epochs is ({full / 3600:.2f})"
    )
    if again := sum(map(len, seed_objectives.values())):
        more = again * epoch_seconds * (config.tune.epochs or epochs)
        told += f"; the {again} runs with other seeds add {more / 3600:.2f}, {more / full:.1f} times"
    return told + "."


def format_best_config(config: Experiment, settings: Settings, notes: Sequence[str]) -> str:
    """An experiment file that distills the winner on the full budget, with this experiment's data and teachers."""
    content = to_dict(build_trial_config(config, settings))
    content |= {"name": f"{config.name}-best", "base_experiment": config.base_experiment or config.name}
    content["distill"] |= {"paradigms": [config.tune.paradigm], "setups": ["multilingual"]}
    content["stages"] = ["prepare", "teachers", "distill", "evaluate", "report"]
    content["grid"] |= {"variants": {}}
    lines = [f"Found by the tune stage of {config.name} on {datetime.now(UTC):%Y-%m-%d}.", *notes]
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def trial_to_json(trial: Trial, seed_objectives: SeedObjectives) -> dict[str, Any]:
    """A trial as trials.json has it."""
    return {
        "trial": f"{trial.number:04d}",
        "settings": trial.settings,
        "state": trial.state,
        "objective": trial.objective,
        "cost": trial.cost,
        "epochs": trial.epochs,
        "audio_seconds": trial.audio_seconds,
        "seed_objectives": list(seed_objectives.get(trial.number, ())),
        "cause": trial.cause,
    }
