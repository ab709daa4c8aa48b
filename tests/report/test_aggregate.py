"""Results over folds and seeds: each utterance once, means over seeds, paired differences."""

from typing import Any

import numpy as np
import pytest

from lakd_ray import metrics
from lakd_ray.report.aggregate import (
    SeedAggregate,
    aggregate_seeds,
    build_aggregate_rows,
    compare_aggregates,
    paired_difference,
)
from lakd_ray.report.predictions import Predictions

EMOTIONS = ("anger", "happiness", "neutral", "sadness")


def predictions(paradigm: str, *, fold: int, seed: int, speakers: range, right: float, **changes: Any) -> Predictions:
    """Forty utterances of each speaker; the share `right` of them is right, which ones depends on the seed."""
    N = 40 * len(speakers)
    labels_N = np.arange(N) % 4
    random = np.random.default_rng([fold, seed, int(1000 * right)])
    wrong_N = np.where(random.random(N) < right, labels_N, (labels_N + 1) % 4)
    fields: dict[str, Any] = {
        "model": f"{paradigm}-multilingual-f{fold}-s{seed}", "paradigm": paradigm, "setup": "multilingual",
        "variant": None, "unknown": "", "fold": fold, "seed": seed, "trained_languages": ("en",), "digest": "x",
        "utterance_N": np.array([f"{speaker}-{number}" for speaker in speakers for number in range(40)]),
        "language_N": np.array(["en"] * N),
        "speaker_N": np.array([f"c:{speaker}" for speaker in speakers for _ in range(40)]),
        "sentence_in_train_N": np.array([None] * N, dtype=object),
        "labels_N": labels_N,
        "probabilities_NC": np.eye(4)[wrong_N],
    }  # fmt: skip
    return Predictions(**fields | changes)


def grid(paradigm: str, right: float, **changes: Any) -> list[Predictions]:
    """Three folds with four speakers each, two seeds."""
    return [
        predictions(paradigm, fold=fold, seed=seed, speakers=range(4 * fold, 4 * fold + 4), right=right, **changes)
        for fold in range(3)
        for seed in (1, 2)
    ]


def test_an_utterance_that_is_tested_in_two_folds_counts_once():
    again = [predictions("ft", fold=3, seed=seed, speakers=range(4), right=0.0) for seed in (1, 2)]
    (pool,) = aggregate_seeds([*again, *grid("ft", 1.0)])
    assert {seed: len(one.labels_N) for seed, one in pool.by_seed.items()} == {1: 480, 2: 480}
    assert build_aggregate_rows(pool, ["en"], EMOTIONS)[0]["UR"] == 1.0  # the first fold's, not that of fold 3


def test_scores_are_means_over_seeds_and_the_confusion_counts_all():
    (pool,) = aggregate_seeds(grid("ft", 0.7))
    row, pooled = build_aggregate_rows(pool, ["en", "fi"], EMOTIONS)
    each = [metrics.compute_scores(one.probabilities_NC, one.labels_N, EMOTIONS) for one in pool.by_seed.values()]
    assert row["UR"] == pytest.approx(np.mean([score.UR for score in each]))
    assert row["recall"]["sadness"] == pytest.approx(np.mean([score.recall["sadness"] for score in each]))
    assert np.sum(row["confusion"]) == 2 * row["n"] == 960
    assert (row["fold"], row["seed"], row["language"], pooled["language"]) == (None, None, "en", "all")
    assert row["UR_interval"] is not None and row["UR_interval"][0] < row["UR"] < row["UR_interval"][1]


def test_monolingual_students_are_one_pool_each_in_its_own_language():
    parts = [
        predictions("ft", fold=0, seed=1, speakers=range(4), right=1.0, setup="monolingual"),
        predictions(
            "ft", fold=0, seed=1, speakers=range(4, 8), right=1.0, setup="monolingual", trained_languages=("fi",),
            language_N=np.array(["fi"] * 160),
        ),
    ]  # fmt: skip
    (pool,) = aggregate_seeds(parts)
    assert [row["language"] for row in build_aggregate_rows(pool, ["en", "fi"], EMOTIONS)] == ["en", "fi", "all"]
    assert build_aggregate_rows(pool, ["en", "fi"], EMOTIONS)[2]["n"] == 320


def one(paradigm: str, right: float) -> SeedAggregate:
    (pool,) = aggregate_seeds(grid(paradigm, right))
    return pool


def test_a_paired_difference_is_that_of_the_same_utterances_and_seeds():
    better, worse = one("mtkd", 0.9), one("ft", 0.6)
    found = paired_difference(better, worse, EMOTIONS)
    assert found is not None and found.interval is not None
    assert (
        pytest.approx(
            build_aggregate_rows(better, ["en"], EMOTIONS)[0]["UR"]
            - build_aggregate_rows(worse, ["en"], EMOTIONS)[0]["UR"]
        )
        == found.UR
    )
    assert 0 < found.interval[0] < found.UR < found.interval[1]
    assert (found.seeds, found.speakers) == (2, 12)
    back = paired_difference(worse, better, EMOTIONS)
    assert back is not None and back.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_runs_that_failed_leave_what_both_have():
    whole, broken = (
        one("mtkd", 0.9),
        aggregate_seeds(grid("ft", 0.6)[:3])[0],
    )  # fold 1 of seed 2 and all of fold 2 are missing
    assert build_aggregate_rows(broken, ["en"], EMOTIONS)[0]["UR_interval"] is not None
    found = paired_difference(whole, broken, EMOTIONS)
    assert found is not None and (found.seeds, found.speakers) == (2, 4)
    other_seeds = aggregate_seeds([predictions("kd", fold=0, seed=7, speakers=range(4), right=0.5)])[0]
    assert paired_difference(whole, other_seeds, EMOTIONS) is None


def test_the_same_answers_differ_by_nothing():
    found = paired_difference(one("mtkd", 0.7), one("mtkd", 0.7), EMOTIONS)
    assert found is not None and found.UR == 0 and found.interval == (0, 0)


def test_sentences():
    variant = aggregate_seeds(grid("mtkd", 0.3, variant="half"))
    found = [one("ft", 0.6), one("mtkd", 0.9), one("kd", 0.9), *variant]
    said = compare_aggregates(found, EMOTIONS)
    assert said[0].startswith("MTKD multilingual against FT multilingual: +") and said[0].endswith("; better.")
    assert "not decided: the interval includes zero" in said[1]
    assert said[2].startswith("MTKD multilingual, half against MTKD multilingual: -") and said[2].endswith("; worse.")
    assert said[3].startswith("These are 3 comparisons")


def test_intervals_over_seeds_hold_the_luck_of_training():
    """Two seeds that differ much make the interval wider than two that agree."""
    apart = [*grid("ft", 0.9)[::2], *grid("ft", 0.5)[1::2]]
    widths = []
    for found in (grid("ft", 0.7), apart):
        low, high = build_aggregate_rows(aggregate_seeds(found)[0], ["en"], EMOTIONS)[0]["UR_interval"] or (0, 0)
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_one_speaker_has_no_interval():
    (pool,) = aggregate_seeds([predictions("ft", fold=0, seed=seed, speakers=range(1), right=0.5) for seed in (1, 2)])
    assert build_aggregate_rows(pool, ["en"], EMOTIONS)[0]["UR_interval"] is None
    assert (
        "no interval can be given"
        in compare_aggregates(
            [pool, aggregate_seeds([predictions("mtkd", fold=0, seed=1, speakers=range(1), right=0.5)])[0]], EMOTIONS
        )[0]
    )
