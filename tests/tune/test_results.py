"""Ranking of trials, and sentences that compare the winner with the paper's settings."""

import re
from typing import Any

import pyarrow as pa
import pytest
import yaml
from scipy import stats

from lakd_ray import storage
from lakd_ray.config import Experiment, ReevaluationConfig, SettingsSelection, to_dict
from lakd_ray.data.manifest import load_manifest
from lakd_ray.data.schema import MANIFEST_SCHEMA
from lakd_ray.errors import ConfigError
from lakd_ray.tune import results
from lakd_ray.tune.study import Trial, paper_settings, validate_search_space

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


def test_trials_with_one_seed_are_ranked_by_it_and_failed_ones_are_not_ranked():
    assert [trial.number for trial in results.rank_trials(TRIALS)] == [1, 2, 0]


def test_reevaluated_trials_are_ranked_by_the_other_seeds_only():
    seed_objectives = {0: [0.70, 0.70], 1: [0.60, 0.62]}
    assert [trial.number for trial in results.rank_trials(TRIALS, seed_objectives)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("seed_objectives", "words"),
    [
        ({}, r"trial 1 is \+20.0 points above the paper's settings, with one seed each: that may be chance"),
        (
            {0: [0.7], 1: [0.8]},
            r"trial 1 is \+10.0 points against .* over one other seed: no verdict, because that needs 3",
        ),
        ({0: [0.7, 0.7], 1: [0.8, 0.81]}, r"trial 1 is \+10.5 .* interval .* over 2|over 2 other seeds.*: no verdict"),
        ({0: [0.70, 0.71, 0.69], 1: [0.80, 0.81, 0.80]}, r"trial 1 is \+10.3 points .* it beats them \(p = 0.001\)"),
        ({0: [0.70, 0.75, 0.65], 1: [0.80, 0.66, 0.75]}, "trial 1 is .* it is not shown to beat them \\(p = "),
        ({0: [0.8, 0.8], 1: [0.7, 0.6], 2: [0.7, 0.74]}, "^The paper's settings are the best. On dev trial 2 is -8.0"),
    ],
)
def test_comparison_of_the_winner_with_the_papers_settings(seed_objectives, words):
    assert re.search(words, results.compare_with_paper(CONFIG, TRIALS, seed_objectives))


def test_the_best_of_several_reevaluated_trials_is_tested_among_them():
    objectives = {0: [0.70, 0.71, 0.69], 1: [0.72, 0.73, 0.715], 2: [0.70, 0.72, 0.69]}
    p = stats.ttest_rel(objectives[1], objectives[0]).pvalue
    alone = results.compare_with_paper(CONFIG, TRIALS, {number: objectives[number] for number in (0, 1)})
    assert f"(p = {p:.3f})" in alone
    assert f"(p = {2 * p:.3f}, adjusted for 2 trials)" in results.compare_with_paper(CONFIG, TRIALS, objectives)


def test_seeds_of_a_reevaluation_are_fresh_and_different():
    with pytest.raises(ValueError, match="expected different seeds"):
        ReevaluationConfig(seeds=(1, 2, 1))
    config = CONFIG.model_copy(
        update={"tune": CONFIG.tune.model_copy(update={"reevaluate": ReevaluationConfig(seeds=(1, CONFIG.seed))})}
    )
    with pytest.raises(ConfigError, match="the seed of the search"):
        validate_search_space(config)


def test_comparison_without_a_trial_of_the_papers_settings():
    assert "were not tried" in results.compare_with_paper(CONFIG, [LUCKY, STEADY], {})
    assert results.compare_with_paper(CONFIG, [PAPER], {}) == "The paper's settings are the best."


def test_cost_of_a_search_includes_its_reevaluation():
    text = results.describe_cost(CONFIG, TRIALS, {}, epoch_seconds=100.0)
    assert text.startswith(
        "4 trials were trained on 0.33 audio-hours, 1.5 times what one student on the full budget of 8"
    )
    with_reevaluation = results.describe_cost(CONFIG, TRIALS, {0: [0.1, 0.2], 1: [0.1, 0.2]}, epoch_seconds=100.0)
    assert with_reevaluation == text[:-1] + "; the 4 runs with other seeds add 0.33, 1.5 times."


def test_the_winners_file_lists_the_dev_speakers_of_its_search(tmp_path):
    earlier = SettingsSelection(experiment="earlier", fold=2, speakers=("c:9",))
    config = CONFIG.model_copy(update={"storage": str(tmp_path), "selected_on": (earlier,)})
    assert yaml.safe_load(results.format_best_config(config, PAPER.settings, []))["selected_on"] == [to_dict(earlier)]
    rows = [
        {
            "utterance": f"{corpus.name}/{language}-{speaker}-{emotion}",
            "corpus": corpus.name,
            "language": language,
            "speaker": f"{corpus.name}:{language}{speaker}",
            "emotion": emotion,
            "source": "x",
            "num_samples": 16_000,
            "cut": False,
            "audio_sha256": f"{corpus.name}{language}{speaker}{emotion}",
            "shard": "0.parquet",
            "row_group": 0,
            "row": 0,
        }
        for corpus in config.corpora
        for language in config.languages
        for speaker in range(8)
        for emotion in config.emotions
    ]
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    storage.write_table(storage.join(config.stage_folder("prepare"), "manifest.parquet"), table)
    manifest = load_manifest(config)
    best = Experiment.model_validate(yaml.safe_load(results.format_best_config(config, PAPER.settings, [])))
    first, second = best.selected_on
    assert first == earlier and (second.experiment, second.fold) == (config.name, config.fold)
    assert set(second.speakers) == manifest.data_exposure(manifest.rows("dev")).speakers != set()
