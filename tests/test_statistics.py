"""Intervals and tests compared with values by hand, with scipy, and with a small simulation of the benchmark."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from lakd_ray import statistics
from lakd_ray.metrics import unweighted_recall

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "statistics_simulation.py"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location(BENCHMARK.stem, BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def confusions(hits_AS: list[list[int]], size: int = 10) -> np.ndarray:
    """Return confusion matrices of one class with utterances, so that UR is the share of hits."""
    hits = np.array(hits_AS)
    counts = np.zeros((*hits.shape, 2, 2))
    counts[..., 0, 0], counts[..., 0, 1] = hits, size - hits
    return counts


def analyze(hits_AS: list[list[int]], strata: str | None = None) -> statistics.Jackknife:
    found = statistics.jackknife(confusions(hits_AS), unweighted_recall, strata or "x" * len(hits_AS[0]))
    assert found is not None
    return found


def test_one_seed_and_speakers_of_equal_size_give_students_t():
    hits = [5, 7, 8, 9, 4]
    model = analyze([hits])
    bounds = statistics.interval(model.estimate, model.standard_errors(), (0, 1))
    values = np.array(hits) / 10
    assert model.estimate == pytest.approx(0.66)
    assert bounds == pytest.approx(stats.t.interval(0.95, 4, values.mean(), stats.sem(values)))


def test_two_speakers_by_hand():
    model = analyze([[5, 7]])
    errors = model.standard_errors()
    assert errors.value_E == pytest.approx([0.1]) and errors.degrees_E == pytest.approx([1.0])
    assert errors.half_width() == pytest.approx(12.7062 * 0.1, rel=1e-5)
    assert statistics.interval(model.estimate, errors, (0, 1)) == (0, 1)  # limited to possible values


def test_speakers_of_unequal_size_by_hand():
    counts = np.zeros((1, 3, 2, 2))
    counts[0, :, 0, 0], counts[0, :, 0, 1] = [2, 6, 9], [2, 2, 1]
    model = statistics.jackknife(counts, unweighted_recall, "xxx")
    assert model is not None
    without_S = np.array([15 / 18, 11 / 14, 8 / 12])
    assert model.without_AS[0] == pytest.approx(without_S)
    assert model.standard_errors().value_E[0] ** 2 == pytest.approx(2 / 3 * ((without_S - without_S.mean()) ** 2).sum())


def test_strata_are_fixed():
    """Differences between languages do not count, and a language does not lose weight with its speakers."""
    model = analyze([[2, 8, 7, 9, 8]], "aabbb")
    # the mean weighs languages by utterances: 2/5 and 3/5
    variance_H = np.array([(2 / 5) ** 2 * np.var([0.2, 0.8], ddof=1) / 2,
                           (3 / 5) ** 2 * np.var([0.7, 0.9, 0.8], ddof=1) / 3])  # fmt: skip
    errors = model.standard_errors()
    assert errors.value_E == pytest.approx([np.sqrt(variance_H.sum())])
    welch = variance_H.sum() ** 2 / (variance_H**2 / np.array([3, 4])).sum() - 2
    assert errors.degrees_E == pytest.approx([welch]) and 1 < welch < 3


def test_a_stratum_with_one_cluster_has_no_interval():
    assert statistics.jackknife(confusions([[5]]), unweighted_recall, "x") is None
    assert statistics.jackknife(confusions([[5, 6, 7]]), unweighted_recall, "xxy") is None


def test_seeds_are_crossed_with_speakers():
    hits = np.array([[5, 7, 9], [4, 8, 9], [7, 9, 10], [5, 5, 8]])
    errors = analyze(hits.tolist()).standard_errors()
    share_AS = hits / 10
    rest_AS = share_AS - share_AS.mean(0) - share_AS.mean(1, keepdims=True) + share_AS.mean()
    clusters = share_AS.mean(0).var(ddof=1) / 3
    seeds = share_AS.mean(1).var(ddof=1) / 4
    interaction = (rest_AS**2).sum() / (3 * 2) / (4 * 3)
    assert errors.value_E == pytest.approx(np.sqrt([clusters, clusters + seeds - interaction]))
    welch = (clusters + seeds) ** 2 / (clusters**2 / 4 + seeds**2 / 5) - 2
    assert errors.degrees_E == pytest.approx([2, np.clip(welch, 1, 5)])


def test_the_variance_over_both_is_at_least_the_larger_one():
    model = analyze([[5, 6, 7], [6, 5, 7], [7, 6, 5]])  # the same score with every seed: the interaction is larger
    errors = model.standard_errors()
    assert errors.value_E[1] == pytest.approx(errors.value_E[0])


def test_the_t_test_over_seeds_decides_where_speakers_agree():
    first, second = [[7, 7, 7, 8], [8, 8, 8, 9], [9, 9, 9, 10]], [[6] * 4, [5] * 4, [8] * 4]
    difference = analyze(first) - analyze(second)
    errors = difference.comparison_errors()
    expected = stats.ttest_rel([0.725, 0.825, 0.925], [0.6, 0.5, 0.8])
    assert difference.estimate == pytest.approx(0.575 / 3)
    assert errors.p_value(difference.estimate) == pytest.approx(expected.pvalue)
    bounds = statistics.interval(difference.estimate, errors, (-1, 1))
    assert bounds == pytest.approx(tuple(expected.confidence_interval()))


def test_the_t_test_over_speakers_decides_where_seeds_agree():
    first, second = [[7, 8, 9], [7, 8, 9], [7, 8, 10]], [[6, 5, 8]] * 3
    difference = analyze(first) - analyze(second)
    p = difference.comparison_errors().p_value(difference.estimate)
    assert p == pytest.approx(stats.ttest_rel([0.7, 0.8, 2.8 / 3], [0.6, 0.5, 0.8]).pvalue)


def test_without_variation_nothing_is_certain():
    model = analyze([[5, 6, 7], [6, 5, 7], [7, 6, 5]])
    constant = analyze([[5, 6], [6, 7], [7, 8]]) - analyze([[4, 5], [5, 6], [6, 7]])
    for difference in (model - model, constant):
        errors = difference.comparison_errors()
        assert errors.p_value(difference.estimate) == 1
        assert statistics.interval(difference.estimate, errors, (-1, 1)) is None


def test_seeds_alone_agree_with_scipy():
    values = np.array([0.02, 0.05, -0.01])
    errors = statistics.standard_error_over_seeds(values)
    expected = stats.ttest_1samp(values, 0)
    assert errors.p_value(values.mean()) == pytest.approx(expected.pvalue)
    bounds = statistics.interval(values.mean(), errors, (-1, 1))
    assert bounds == pytest.approx(tuple(expected.confidence_interval()))


def test_a_class_of_one_speaker_gives_no_nan():
    counts = np.zeros((2, 3, 2, 2))
    counts[:, :, 0, 0], counts[:, 2, 1, 1] = 1 / 3, 1 / 3
    counts[1, 0, 0, 1] = 1 / 7
    model = statistics.jackknife(counts, unweighted_recall, "xxx")
    assert model is not None and np.isfinite(model.without_AS).all()
    assert model.without_AS[0] == pytest.approx([1, 1, 1])  # not the recall of a rounding error


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, None, 0.005]) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert statistics.holm([0.9, 0.6]) == [1.0, 1.0] and statistics.holm([None]) == [None] and statistics.holm([]) == []


@pytest.mark.parametrize(("speakers", "seeds"), [(2, 1), (3, 3), (10, 1), (10, 3)])
def test_intervals_cover_in_simulation(simulation, speakers, seeds):
    random = np.random.default_rng(speakers)
    drawn = simulation.draw(simulation.TYPICAL, random, replications=400, speakers=speakers, seeds=seeds)
    (model,) = simulation.jackknives(drawn)
    covered = np.abs(model.estimate - drawn.true_R) <= model.standard_errors().half_width()
    assert 0.91 < covered.mean() <= 0.99
    low_R, high_R, estimate_R = simulation.bootstrap_intervals(random, drawn, 100)
    assert estimate_R == pytest.approx(model.estimate[:100])
    if speakers == 2 and seeds == 1:
        assert ((low_R <= drawn.true_R[:100]) & (drawn.true_R[:100] <= high_R)).mean() < 0.7


def test_equal_settings_are_rarely_decided_in_simulation(simulation):
    random = np.random.default_rng(0)
    drawn = simulation.draw(simulation.TYPICAL, random, replications=300, speakers=6, seeds=3, gains=[0, 0, 0, 0.9])
    decided_KR = simulation.adjusted_decisions(simulation.comparison_p_values(drawn))
    assert decided_KR[:2].any(axis=0).mean() <= 0.06
    assert decided_KR[2].mean() > 0.5  # a real difference of 20 points


def test_the_true_recall_of_the_simulation_is_the_mean_of_its_draws(simulation):
    for scenario in (simulation.TYPICAL, simulation.LANGUAGES):
        drawn = simulation.draw(
            scenario, np.random.default_rng(1), replications=40, speakers=40, seeds=2, gains=[0.0, 0.3]
        )
        UR_MR = unweighted_recall(drawn.confusion_MASRCC.sum(axis=2)).mean(axis=1)
        assert UR_MR[0].mean() == pytest.approx(drawn.true_R[0], abs=0.01)
        assert UR_MR[1].mean() == pytest.approx(simulation.true_recall(scenario, gain=0.3), abs=0.01)


def test_the_simulation_prints_its_tables(simulation, capsys):
    simulation.print_tables(20, small=True)
    text = capsys.readouterr().out
    headings = [line for line in text.splitlines() if line.startswith("### ")]
    assert len(headings) == 1 + len(simulation.SCENARIOS) + 3
    assert "nan" not in text and "| 10 | 3 | typical, balanced |" in text
