"""Which trial wins, and what is said of it beside the paper's settings."""

import re
from typing import Any

import pytest

from lakd_ray.config import Experiment
from lakd_ray.tune import results
from lakd_ray.tune.study import Trial, paper_settings

RECIPE = {"model": {"pretrained": "somewhere"}, "optim": {"epochs": 8}}
CONFIG = Experiment.model_validate(
    {
        "name": "s",
        "languages": ["en", "fi"],
        "corpora": [{"name": "c", "root": "x"}],
        "teacher": RECIPE,
        "student": RECIPE,
        "tune": {"trials": 3, "epochs": 3},
    }
)


def trial(number: int, objective: float | None, state: str = "complete", **settings: float) -> Trial:
    values: dict[str, Any] = dict(paper_settings(CONFIG) or {}) | settings
    return Trial(number, values, state, objective, None, 3, (), 300.0)


PAPER = trial(0, 0.70)
LUCKY, STEADY, FAILED = (
    trial(1, 0.90, **{"distill.mtkd.lam": 0.5}),
    trial(2, 0.80, "stopped", **{"distill.mtkd.lam": 0.6}),
    trial(3, None, "failed", **{"distill.mtkd.lam": 0.7}),
)
TRIALS = [PAPER, LUCKY, STEADY, FAILED]


def test_the_best_of_one_seed_is_ranked_by_it_and_what_failed_is_not_ranked():
    assert [one.number for one in results.rank_trials(TRIALS)] == [1, 2, 0]


def test_who_was_chosen_for_a_lucky_number_is_ranked_by_the_other_seeds_alone():
    seed_objectives = {0: [0.70, 0.70], 1: [0.60, 0.62]}
    assert [one.number for one in results.rank_trials(TRIALS, seed_objectives)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("seed_objectives", "words"),
    [
        ({}, r"trial 1 is \+20.0 points above the paper's settings, with one seed each: that may be luck"),
        ({0: [0.7], 1: [0.8]}, r"trial 1 is \+10.0 points against .* over one other seed, which gives no interval"),
        ({0: [0.70, 0.71, 0.69], 1: [0.80, 0.81, 0.80]}, r"trial 1 is \+10.3 points .* it beats them"),
        ({0: [0.70, 0.75, 0.65], 1: [0.80, 0.66, 0.75]}, "trial 1 is .* it is not shown to beat them"),
        ({0: [0.8, 0.8], 1: [0.7, 0.6], 2: [0.7, 0.74]}, "^The paper's settings are the best. On dev trial 2 is -8.0"),
    ],
)
def test_the_winner_is_held_against_the_papers_settings(seed_objectives, words):
    assert re.search(words, results.compare_with_paper(CONFIG, TRIALS, seed_objectives))


def test_where_the_paper_was_not_tried_that_is_said():
    assert "were not tried" in results.compare_with_paper(CONFIG, [LUCKY, STEADY], {})
    assert results.compare_with_paper(CONFIG, [PAPER], {}) == "The paper's settings are the best."


def test_what_a_search_cost_is_told_with_its_confirmation():
    told = results.describe_cost(CONFIG, TRIALS, {}, epoch_seconds=100.0)
    assert told.startswith(
        "4 trials were trained on 0.33 audio-hours, 1.5 times what one student on the full budget of 8"
    )
    again = results.describe_cost(CONFIG, TRIALS, {0: [0.1, 0.2], 1: [0.1, 0.2]}, epoch_seconds=100.0)
    assert again == told[:-1] + "; the 4 runs with other seeds add 0.33, 1.5 times."
