"""Aggregation over folds and seeds: each utterance weighs one, scores are means over seeds."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lakd_ray import metrics
from lakd_ray.report.aggregate import (
    SeedAggregate,
    aggregate_seeds,
    build_rows,
    confusions_by_cluster,
)
from lakd_ray.report.caveats import describe_intervals
from lakd_ray.report.comparisons import compare_aggregates, describe_comparison, paired_difference
from lakd_ray.report.predictions import Predictions
from lakd_ray.report.verdicts import adjustment_note, decide
from lakd_ray.statistics import recall_interval

EMOTIONS = ("anger", "happiness", "neutral", "sadness")
STRENGTHS = (("mtkd", 0.9), ("ft", 0.6))


def predictions(paradigm: str, *, fold: int, seed: int, speakers: range, correct: float, **changes: Any) -> Predictions:
    """Return predictions for forty utterances per speaker; the fraction `correct` is correct, by random draw."""
    N = 40 * len(speakers)
    labels_N = np.arange(N) % 4
    random = np.random.default_rng([fold, seed, int(1000 * correct)])
    predicted_N = np.where(random.random(N) < correct, labels_N, (labels_N + 1) % 4)
    fields: dict[str, Any] = {
        "model": f"{paradigm}-multilingual-f{fold}-s{seed}", "paradigm": paradigm, "setup": "multilingual",
        "variant": None, "undisclosed_models": "", "settings_selected_on": "",
        "fold": fold, "seed": seed, "trained_languages": ("en",),
        "digest": "x",
        "utterance_N": np.array([f"{speaker}-{number}" for speaker in speakers for number in range(40)]),
        "fold_N": np.full(N, fold),
        "language_N": np.array(["en"] * N),
        "speaker_N": np.array([f"c:{speaker}" for speaker in speakers for _ in range(40)]),
        "cluster_N": np.array([f"c:{speaker}" for speaker in speakers for _ in range(40)]),
        "sentence_in_train_N": np.array([None] * N, dtype=object),
        "labels_N": labels_N,
        "probabilities_NC": np.eye(4)[predicted_N],
    }  # fmt: skip
    return Predictions(**fields | changes)


def grid(paradigm: str, correct: float, seeds: tuple[int, ...] = (1, 2), **changes: Any) -> list[Predictions]:
    """Return the predictions of three folds with four speakers each."""
    return [
        predictions(paradigm, fold=fold, seed=seed, speakers=range(4 * fold, 4 * fold + 4), correct=correct, **changes)
        for fold in range(3)
        for seed in seeds
    ]


def few(fold: int, language: str, labels: str, predicted: str, certainty: float = 1.0, seed: int = 1) -> Predictions:
    """Return predictions of a few utterances by letters of the emotions, for two speakers in turn."""
    letters = [name[0] for name in EMOTIONS]
    labels_N, predicted_N = (np.array([letters.index(letter) for letter in text]) for text in (labels, predicted))
    N = len(labels_N)
    changes: dict[str, Any] = {
        "utterance_N": np.array([f"{language}-{number}" for number in range(N)]),
        "fold_N": np.full(N, fold),
        "language_N": np.array([language] * N),
        "speaker_N": np.array([f"c:{language}{number % 2}" for number in range(N)]),
        "cluster_N": np.array([f"c:{language}{number % 2}" for number in range(N)]),
        "sentence_in_train_N": np.array([None] * N, dtype=object),
        "trained_languages": ("en", "fi"),
        "labels_N": labels_N,
        "probabilities_NC": certainty * np.eye(4)[predicted_N] + (1 - certainty) / 4,
    }
    return predictions("mtkd", fold=fold, seed=seed, speakers=range(1), correct=1.0, **changes)


def test_predictions_of_repeated_folds_share_the_weight_of_their_utterance():
    """The corpus of en has one test fold, which two models predict; fi has two folds, which one model predicts each."""
    models = [few(0, "en", "aahh", "aaaa"), few(1, "en", "aahh", "ahhh"), few(0, "fi", "aan", "ana")]
    (pool,) = aggregate_seeds(models)
    en, fi, mean, pooled = build_rows(pool, ["en", "fi"], EMOTIONS)
    # en: anger is right in 2 and 1 of 2 utterances, happiness in 0 and 2 of 2
    assert en["recall"] == {"anger": 0.75, "happiness": 0.5, "neutral": None, "sadness": None}
    assert (en["n"], en["UR"], en["WR"]) == (4, 0.625, 0.625)
    assert en["confusion"] == [[1.5, 0.5, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]
    assert en["ece"] == pytest.approx(0.375)  # certain, and right in 5 of 8 predictions
    assert (fi["n"], fi["UR"], fi["WR"]) == (3, 0.25, pytest.approx(1 / 3))
    # each language weighs the same in one, each utterance in the other
    assert (mean["language"], mean["n"], mean["UR"], mean["confusion"]) == ("mean", 7, (0.625 + 0.25) / 2, None)
    assert mean["recall"] == {"anger": (0.75 + 0.5) / 2, "happiness": 0.5, "neutral": 0.0, "sadness": None}
    assert (pooled["language"], pooled["n"], pooled["WR"]) == ("all", 7, pytest.approx(3.5 / 7))
    assert pooled["UR"] == pytest.approx((2.5 / 4 + 1 / 2 + 0) / 3)


def test_confusions_of_repeated_folds_are_fractions_by_seed_cluster_and_language():
    models = [few(0, "en", "aahh", "aaaa"), few(1, "en", "aahh", "ahhh"), few(0, "fi", "aan", "ana")]
    pools = aggregate_seeds([*models, few(0, "fi", "aan", "aaa", seed=2), few(0, "en", "aahh", "aaaa", seed=2)])
    (confusion_ASLCC,) = confusions_by_cluster(pools)
    pooled_ASCC = confusion_ASLCC.sum(axis=2)
    assert pooled_ASCC.shape == (2, 4, 4, 4) and pooled_ASCC.dtype == np.float64
    # speakers en0 (anger, happiness), en1 (the same), fi0 (anger, neutral), fi1 (anger)
    assert pooled_ASCC[0, 1, :2, :2].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert pooled_ASCC.sum(axis=(2, 3)).tolist() == [[2, 2, 2, 1]] * 2
    assert confusion_ASLCC.sum(axis=(1, 3, 4)).tolist() == [[4, 3]] * 2
    UR_A = metrics.mean_recall_over_languages(confusion_ASLCC.sum(axis=1))
    assert UR_A.tolist() == [(0.625 + 0.25) / 2, (0.5 + 0.5) / 2]


def test_the_same_model_in_two_cells_counts_as_one():
    """A monolingual run that two folds share is in both cells."""
    (once,) = aggregate_seeds(grid("ft", 0.7))
    (twice,) = aggregate_seeds([*grid("ft", 0.7), *(replace(model, fold=model.fold + 3) for model in grid("ft", 0.7))])
    first, second = (build_rows(pool, ["en"], EMOTIONS) for pool in (once, twice))
    for one, two in zip(first, second, strict=True):
        assert (one["n"], one["UR_interval"]) == (two["n"], pytest.approx(two["UR_interval"]))
        assert [one[key] for key in ("UR", "WR", "macro_f1", "ece")] == pytest.approx(
            [two[key] for key in ("UR", "WR", "macro_f1", "ece")]
        )


def test_comparisons_are_of_the_same_utterances_by_models_of_the_same_folds():
    first = [few(0, "en", "aahh", "aahh"), few(1, "en", "aahh", "hhaa"), few(0, "fi", "aan", "aan")]
    second = [few(0, "en", "aahh", "aaaa"), few(0, "fi", "aann", "aana")]
    difference = paired_difference(*(aggregate_seeds(models)[0] for models in (first, second)))
    # without fold 1, and without the fourth utterance of fi, whose model of the first setting is missing
    assert difference["difference"] == pytest.approx((1.0 + 1.0) / 2 - (0.5 + 1.0) / 2)


def test_scores_and_the_confusion_matrix_are_means_over_seeds():
    (pool,) = aggregate_seeds(grid("ft", 0.7))
    row, _, pooled = build_rows(pool, ["en", "fi"], EMOTIONS)
    scores = [metrics.compute_scores(m.probabilities_NC, m.labels_N, EMOTIONS) for m in pool.by_seed.values()]
    assert row["UR"] == pytest.approx(np.mean([score.UR for score in scores]))
    assert row["recall"]["sadness"] == pytest.approx(np.mean([score.recall["sadness"] for score in scores]))
    assert np.sum(row["confusion"]) == row["n"] == 480
    assert (row["fold"], row["seed"], row["language"], pooled["language"]) == (None, None, "en", "all")
    assert row["UR_interval"] is not None and row["UR_interval"][0] < row["UR"] < row["UR_interval"][1]


def test_monolingual_students_are_one_aggregate_each_in_its_own_language():
    parts = [
        predictions("ft", fold=0, seed=1, speakers=range(4), correct=1.0, setup="monolingual"),
        predictions(
            "ft", fold=0, seed=1, speakers=range(4, 8), correct=1.0, setup="monolingual", trained_languages=("fi",),
            language_N=np.array(["fi"] * 160),
        ),
    ]  # fmt: skip
    (pool,) = aggregate_seeds(parts)
    assert [row["language"] for row in build_rows(pool, ["en", "fi"], EMOTIONS)] == ["en", "fi", "mean", "all"]
    assert [row["n"] for row in build_rows(pool, ["en", "fi"], EMOTIONS)[2:]] == [320, 320]


def aggregate(paradigm: str, correct: float) -> SeedAggregate:
    (pool,) = aggregate_seeds(grid(paradigm, correct))
    return pool


def test_paired_difference_is_over_the_same_utterances_and_seeds():
    better, worse = aggregate("mtkd", 0.9), aggregate("ft", 0.6)
    row = paired_difference(better, worse)
    UR = [build_rows(pool, ["en"], EMOTIONS)[0]["UR"] for pool in (better, worse)]
    assert row["difference"] == pytest.approx(UR[0] - UR[1])
    low, high = row["interval"]
    assert low < row["difference"] < high and low + high == pytest.approx(2 * row["difference"])
    assert (row["seeds"], row["clusters"], row["unit"]) == (2, 12, "speaker")
    reverse = paired_difference(worse, better)
    assert reverse["interval"] == pytest.approx([-high, -low])
    assert row["p_value"] is None and row["verdict"] == "no verdict: two seeds"


def test_differences_over_three_seeds_agree_with_scipy():
    first, second = (aggregate_seeds(grid(name, share, seeds=(1, 2, 3)))[0] for name, share in STRENGTHS)
    row = paired_difference(first, second)
    UR = [
        [metrics.compute_scores(m.probabilities_NC, m.labels_N, EMOTIONS).UR for m in side.by_seed.values()]
        for side in (first, second)
    ]
    over_seeds = stats.ttest_rel(*UR)
    assert row["p_value"] >= over_seeds.pvalue * (1 - 1e-9)  # of all tests, the one that is furthest from a decision
    decide([row])
    assert row["p_adjusted"] == row["p_value"]
    assert row["verdict"] == ("better" if row["interval"][0] > 0 else "undecided")


def test_failed_runs_restrict_the_comparison_to_shared_utterances():
    complete = aggregate("mtkd", 0.9)
    (partial,) = aggregate_seeds(grid("ft", 0.6)[:3])  # without fold 1 of seed 2 and without fold 2
    assert build_rows(partial, ["en"], EMOTIONS)[0]["UR_interval"] is not None
    row = paired_difference(complete, partial)
    assert (row["seeds"], row["clusters"]) == (2, 4)
    (other_seed,) = aggregate_seeds([predictions("kd", fold=0, seed=7, speakers=range(4), correct=0.5)])
    nothing = paired_difference(complete, other_seed)
    assert (
        nothing["difference"] is None
        and nothing["verdict"] == "no verdict: the seeds of both have no test utterances of every language in common"
    )
    assert describe_comparison(nothing).endswith(
        "no verdict: the seeds of both have no test utterances of every language in common."
    )


def test_seeds_without_a_language_have_no_mean_over_languages():
    """Of three seeds of a monolingual setting, the second has no Finnish model."""
    english, finnish = (
        [few(0, language, "anhs", predicted, seed=seed) for seed in (1, 2, 3)]
        for language, predicted in (("en", "anha"), ("fi", "aaaa"))
    )
    english[1] = few(0, "en", "anhs", "aaaa", seed=2)
    (partial,) = aggregate_seeds([*english, finnish[0], finnish[2]])
    rows = {row["language"]: row for row in build_rows(partial, ["en", "fi"], EMOTIONS)}
    assert rows["en"]["UR"] == pytest.approx((0.75 + 0.25 + 0.75) / 3) and rows["fi"]["UR"] == 0.25
    assert rows["mean"]["UR"] == rows["all"]["UR"] == 0.5  # over seeds 1 and 3
    (other,) = aggregate_seeds([replace(part, paradigm="ft") for part in (*english, *finnish)])
    row = paired_difference(partial, other)
    assert (row["seeds"], row["difference"]) == (2, 0.0)
    (only_english,) = aggregate_seeds(english)
    languages = [row["language"] for row in build_rows(only_english, ["en", "fi"], EMOTIONS, summarized=["en", "fi"])]
    assert languages == ["en"]  # a mean over one language would stand beside means over two
    assert paired_difference(only_english, other)["difference"] is None
    assert paired_difference(only_english, only_english, ["en", "fi"])["difference"] is None


def test_a_language_of_one_bilingual_speaker_has_no_interval():
    english, finnish = few(0, "en", "anhsanhsanhs", "anhsanhaahhs"), few(0, "fi", "anhs", "anha")
    names = np.array(["c:en0", "c:en0", "c:en0", "c:en0"])
    bilingual = replace(finnish, speaker_N=names, cluster_N=names)
    (pool,) = aggregate_seeds([replace(part, trained_languages=("en", "fi")) for part in (english, bilingual)])
    intervals = {row["language"]: row["UR_interval"] for row in build_rows(pool, ["en", "fi"], EMOTIONS)}
    assert intervals["en"] is not None and intervals["fi"] is intervals["mean"] is intervals["all"] is None


def test_equal_predictions_have_no_difference():
    row = paired_difference(aggregate("mtkd", 0.7), aggregate("mtkd", 0.7))
    assert row["difference"] == 0 and row["interval"] is None
    assert row["verdict"] == "no verdict: no variation over seeds and speakers"


def describe_all(pools: list[SeedAggregate]) -> list[str]:
    rows = compare_aggregates(pools)
    decide(rows)
    return [*map(describe_comparison, rows), *adjustment_note(rows)]


def test_sentences_of_comparisons():
    seeds = (1, 2, 3, 4)
    variant = aggregate_seeds(grid("mtkd", 0.3, seeds, variant="half"))
    pools = [aggregate_seeds(grid(name, share, seeds))[0] for name, share in (*STRENGTHS, ("kd", 0.89))]
    sentences = describe_all([*pools, *variant])
    counts = "over 4 seeds and 12 speakers"
    assert re.fullmatch(
        r"MTKD multilingual compared with FT multilingual: \+\d+\.\d points of UR, 95 % interval \+\d+\.\d to "
        rf"\+\d+\.\d {counts}; better \(p (= \S+|< 0.001)\)\.",
        sentences[0],
    )
    assert re.search(rf"{counts}; undecided \(p = \d\.\d+\)\.", sentences[1])
    assert sentences[2].startswith("MTKD multilingual, half compared with MTKD multilingual: -")
    assert re.search(r"; worse \(p .*\)\.", sentences[2])
    assert "p-values are adjusted for the 3 comparisons of this report" in sentences[3]


def test_one_and_two_seeds_have_no_verdict():
    for seeds, words in (((1,), "over 12 speakers; no verdict: one seed."), ((1, 2), "; no verdict: two seeds.")):
        pools = [aggregate_seeds(grid(name, share, seeds))[0] for name, share in STRENGTHS]
        sentence, rule = describe_all(pools)
        assert sentence.endswith(words) and "95 % interval" in sentence
        assert rule.startswith("Comparisons have a verdict from 3 seeds on")


def test_paradigms_of_a_single_variant_are_compared():
    pools = [aggregate_seeds(grid(name, 0.8, variant="half"))[0] for name in ("ft", "mtkd")]
    sentence, _ = describe_all(pools)
    assert sentence.startswith("MTKD multilingual, half compared with FT multilingual, half: ")


def test_intervals_of_one_language_are_those_of_a_jackknife_over_speakers():
    (pool,) = aggregate_seeds([predictions("ft", fold=0, seed=1, speakers=range(5), correct=0.6)])
    model = pool.by_seed[1]
    speakers = model.speaker_N.tolist()
    expected = recall_interval(model.probabilities_NC, model.labels_N, speakers)
    right_N = model.probabilities_NC.argmax(axis=1) == model.labels_N
    shares = [right_N[model.speaker_N == speaker].mean() for speaker in sorted(set(speakers))]
    for row in build_rows(pool, ["en"], EMOTIONS):
        assert row["UR_interval"] == pytest.approx(expected)
        assert row["WR_interval"] == pytest.approx(stats.t.interval(0.95, 4, np.mean(shares), stats.sem(shares)))


def test_sessions_are_the_clusters_where_speakers_talk_to_each_other():
    (plain,) = aggregate_seeds([predictions("ft", fold=0, seed=1, speakers=range(6), correct=0.6)])
    sessions_N = np.array([f"c:session{number // 80}" for number in range(240)])
    paired = replace(plain, by_seed={1: replace(plain.by_seed[1], cluster_N=sessions_N)})
    assert (plain.unit, paired.unit) == ("speaker", "session")
    assert confusions_by_cluster([paired])[0].shape[1] == 3
    intervals = [build_rows(pool, ["en"], EMOTIONS)[0]["UR_interval"] for pool in (plain, paired)]
    assert intervals[0] != intervals[1]
    caveats = describe_intervals([*plain.by_seed.values()]), describe_intervals([*paired.by_seed.values()])
    assert "(en 6)." in caveats[0] and "(en 3 sessions). The speakers of a session talk" in caveats[1]


def test_speakers_of_several_languages_are_strata():
    """A language with one speaker has no interval, and neither have the rows over all languages."""
    models = [few(0, "en", "aahh", "ahha"), few(0, "fi", "aahh", "ahhh")]
    rows = build_rows(aggregate_seeds(models)[0], ["en", "fi"], EMOTIONS)
    assert all(row["UR_interval"] is not None for row in rows)
    single = replace(models[1], cluster_N=np.array(["c:fi0"] * 4))
    rows = build_rows(aggregate_seeds([models[0], single])[0], ["en", "fi"], EMOTIONS)
    assert [row["UR_interval"] is None for row in rows] == [False, True, True, True]
    assert "There is no interval in fi, nor over all languages" in describe_intervals([models[0], single])


def test_intervals_include_the_variation_between_seeds():
    """Seeds with different scores give a wider interval than seeds with similar scores."""
    different = [*grid("ft", 0.9)[::2], *grid("ft", 0.5)[1::2]]
    widths = []
    for models in (grid("ft", 0.7), different):
        low, high = build_rows(aggregate_seeds(models)[0], ["en"], EMOTIONS)[0]["UR_interval"] or (0, 0)
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_one_speaker_has_no_interval():
    models = [predictions("ft", fold=0, seed=seed, speakers=range(1), correct=0.5) for seed in (1, 2)]
    (pool,) = aggregate_seeds(models)
    assert build_rows(pool, ["en"], EMOTIONS)[0]["UR_interval"] is None
    (other,) = aggregate_seeds([predictions("mtkd", fold=0, seed=1, speakers=range(1), correct=0.5)])
    assert "95 % interval" not in describe_all([pool, other])[0]
    three = [
        aggregate_seeds([predictions(name, fold=0, seed=seed, speakers=range(1), correct=0.5) for seed in (1, 2, 3)])
        for name in ("ft", "mtkd")
    ]
    assert describe_all([pool for (pool,) in three])[0].endswith("; no verdict: one test speaker in a language.")
