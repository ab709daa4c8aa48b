"""Rank trials, write the winner as an experiment file, and compare it with the paper's settings."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import mean
from typing import Any

import numpy as np
import yaml

from lakd_ray import storage
from lakd_ray.config import Experiment, SettingsSelection, to_dict
from lakd_ray.data import manifest as manifests
from lakd_ray.escaping import for_line
from lakd_ray.statistics import MIN_SEEDS, SIGNIFICANCE, describe_p, holm, interval, standard_error_over_seeds
from lakd_ray.tune.study import Settings, Trial, build_trial_config, paper_settings

SeedObjectives = Mapping[int, Sequence[float]]
"""Objectives with each of the other seeds, by trial number."""


def rank_trials(trials: Sequence[Trial], seed_objectives: SeedObjectives | None = None) -> list[Trial]:
    """Return the ended trials, the best first.

    Reevaluated trials come first, by their mean over the other seeds: the objective with which they were selected is
    biased upwards.
    """
    reevaluated = seed_objectives or {}

    def key(trial: Trial) -> tuple[bool, float]:
        return trial.number in reevaluated, mean(reevaluated.get(trial.number, [trial.objective or 0.0]))

    ended = [trial for trial in trials if trial.objective is not None and trial.state in ("complete", "stopped")]
    return sorted(ended, key=key, reverse=True)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other trial dominates in both objectives, the cheapest first."""
    ended = [trial for trial in trials if trial.cost is not None and trial.objective is not None]
    front = [trial for trial in ended if not any(_dominates(other, trial) for other in ended)]
    return sorted(front, key=lambda trial: trial.cost or 0)


def _dominates(trial: Trial, other: Trial) -> bool:
    first, second = ((candidate.objective or 0.0, -(candidate.cost or 0.0)) for candidate in (trial, other))
    return first != second and all(a >= b for a, b in zip(first, second, strict=True))


def find_paper_trial(config: Experiment, trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the paper's settings; None if it was not run."""
    paper = paper_settings(config)
    return next((trial for trial in trials if paper and trial.settings == paper), None)


def compare_with_paper(config: Experiment, trials: Sequence[Trial], seed_objectives: SeedObjectives) -> str:
    """Compare the winner, or the second best if the paper's settings win, with the paper's settings in a sentence."""
    order, paper = rank_trials(trials, seed_objectives), find_paper_trial(config, trials)
    if paper is None or paper.objective is None:
        return "The paper's settings were not tried: they are outside of tune.space."
    best, prefix = order[0], ""
    if best.number == paper.number:
        prefix = "The paper's settings are the best. "
        others = [trial for trial in order if trial.number in seed_objectives and trial.number != paper.number]
        if paper.number not in seed_objectives or not others:
            return prefix.strip()
        best = others[0]
    difference = 100 * ((best.objective or 0) - paper.objective)
    if best.number not in seed_objectives or paper.number not in seed_objectives:
        return (
            f"On dev trial {best.number} is {difference:+.1f} points above the paper's settings, with one seed each: "
            "that may be chance, and the best of many trials is biased upwards. `tune.reevaluate` runs both with other "
            "seeds."
        )
    return f"{prefix}On dev trial {best.number} is {_describe_difference(best.number, paper.number, seed_objectives)}."


def _describe_difference(best: int, paper: int, seed_objectives: SeedObjectives) -> str:
    """Describe the difference of a reevaluated trial to the paper's settings, over the seeds of the reevaluation.

    The best of several reevaluated trials is again partly the luckiest, so all of them are tested, and their p-values
    are adjusted for each other.
    """
    differences = {
        number: np.subtract(values, seed_objectives[paper])
        for number, values in seed_objectives.items()
        if number != paper
    }
    estimate, seeds = float(differences[best].mean()), len(differences[best])
    counted = f"{seeds} other seeds" if seeds > 1 else "one other seed"
    summary = f"{100 * estimate:+.1f} points against the paper's settings over {counted}"
    bounds = interval(estimate, standard_error_over_seeds(differences[best]), (-1, 1)) if seeds > 1 else None
    if bounds is not None:
        summary += f", 95 % interval {100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}"
    if seeds < MIN_SEEDS:
        return f"{summary}: no verdict, because that needs {MIN_SEEDS} seeds in `tune.reevaluate.seeds`"
    p_values = [
        float(standard_error_over_seeds(values_A).p_value(values_A.mean())) for values_A in differences.values()
    ]
    p = dict(zip(differences, holm(p_values), strict=True))[best] or 0.0  # all have a p-value
    verdict = "it beats them" if p < SIGNIFICANCE and estimate > 0 else "it is not shown to beat them"
    trials = f", adjusted for {len(differences)} trials" if len(differences) > 1 else ""
    return f"{summary}: {verdict} ({describe_p(p)}{trials})"


def describe_cost(
    config: Experiment, trials: Sequence[Trial], seed_objectives: SeedObjectives, epoch_seconds: float
) -> str:
    """Compare the audio of all trials with that of one student on the full budget in a sentence."""
    epochs = config.student.optim.epochs
    trained, full = sum(trial.audio_seconds for trial in trials), epoch_seconds * epochs
    text = (
        f"{len(trials)} trials were trained on {trained / 3600:.2f} audio-hours, {trained / full:.1f} times what one "
        f"student on the full budget of {epochs} epochs is ({full / 3600:.2f})"
    )
    if runs := sum(map(len, seed_objectives.values())):
        more = runs * epoch_seconds * (config.tune.epochs or epochs)
        text += f"; the {runs} runs with other seeds add {more / 3600:.2f}, {more / full:.1f} times"
    return text + "."


def format_best_config(config: Experiment, settings: Settings, notes: Sequence[str]) -> str:
    """Return an experiment file that distills the winner on the full budget, with the same data and teachers."""
    content = to_dict(build_trial_config(config, settings))
    content["selected_on"] = [to_dict(selection) for selection in (*config.selected_on, *_find_selection(config))]
    content |= {"name": f"{config.name}-best", "base_experiment": config.base_experiment or config.name}
    content["distill"] |= {"paradigms": [config.tune.paradigm], "setups": ["multilingual"]}
    content["stages"] = ["prepare", "teachers", "distill", "evaluate", "report"]
    content["grid"] |= {"variants": {}}
    lines = [f"Found by the tune stage of {config.name} on {datetime.now(UTC):%Y-%m-%d}.", *notes]
    comments = "".join(f"# {for_line(line)}\n" for line in lines)
    return comments + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _find_selection(config: Experiment) -> list[SettingsSelection]:
    """Return the dev speakers whose results select settings; empty if the data are not prepared."""
    if not storage.exists(storage.join(config.stage_folder("prepare"), manifests.MANIFEST_FILE)):
        return []
    manifest = manifests.load_manifest(config)
    speakers = manifest.table["speaker"].take(manifest.rows("dev")).unique().to_pylist()
    return [SettingsSelection(experiment=config.name, fold=config.fold, speakers=tuple(sorted(speakers)))]


def trial_to_json(trial: Trial, seed_objectives: SeedObjectives) -> dict[str, Any]:
    """Return a trial as an entry of trials.json."""
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
