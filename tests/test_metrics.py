"""Metrics compared with values computed by hand and with scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from lakd_ray import metrics
from lakd_ray.errors import DataError

ABC = ("anger", "happiness", "neutral")


def certain(predicted: list[int], classes: int = 3) -> np.ndarray:
    """Return probability 1 for the predicted class."""
    return np.eye(classes)[predicted]


def test_scores_of_a_small_case_by_hand() -> None:
    # anger: 2 of 3 correct; happiness: 1 of 2; neutral: 1 of 1
    scores = metrics.compute_scores(certain([0, 0, 1, 1, 2, 2]), np.array([0, 0, 0, 1, 1, 2]), ABC)
    assert scores.recall == pytest.approx({"anger": 2 / 3, "happiness": 1 / 2, "neutral": 1.0})
    assert pytest.approx((2 / 3 + 1 / 2 + 1) / 3) == scores.UR
    assert pytest.approx(4 / 6) == scores.WR
    # F1 = 2 hits / (truths + predictions)
    assert scores.macro_f1 == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    assert scores.ece == pytest.approx(1 - 4 / 6)  # confidence 1, correct four times in six
    assert scores.n == 6
    assert scores.confusion == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_perfect_predictions() -> None:
    labels_N = np.array([0, 1, 2, 1])
    scores = metrics.compute_scores(certain([0, 1, 2, 1]), labels_N, ABC)
    assert (scores.UR, scores.WR, scores.macro_f1, scores.ece) == (1, 1, 1, 0)


def test_constant_prediction_has_the_unweighted_recall_of_chance() -> None:
    labels_N = np.array([0] * 90 + [1] * 9 + [2])
    scores = metrics.compute_scores(certain([0] * 100), labels_N, ABC)
    assert pytest.approx(1 / 3) == scores.UR
    assert pytest.approx(0.9) == scores.WR


def test_a_class_without_labels_is_excluded() -> None:
    scores = metrics.compute_scores(certain([0, 1, 2, 1]), np.array([0, 0, 1, 1]), ABC)
    assert scores.recall == {"anger": 0.5, "happiness": 0.5, "neutral": None}
    assert scores.UR == 0.5
    assert scores.macro_f1 == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert scores.confusion[2] == [0, 0, 0]


def test_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    labels_N = rng.integers(4, size=500)
    probabilities_NC = rng.dirichlet(np.ones(4), size=500)
    predicted_N = probabilities_NC.argmax(axis=1)
    scores = metrics.compute_scores(probabilities_NC, labels_N, ("a", "b", "c", "d"))
    assert pytest.approx(balanced_accuracy_score(labels_N, predicted_N)) == scores.UR
    assert pytest.approx(accuracy_score(labels_N, predicted_N)) == scores.WR
    assert scores.macro_f1 == pytest.approx(f1_score(labels_N, predicted_N, average="macro"))
    assert scores.confusion == confusion_matrix(labels_N, predicted_N).tolist()


def test_calibration_error_by_hand() -> None:
    # two bins are in use: 0.55 (bin of 8/15..9/15), correct once in two; 0.9 and 0.92 (13/15..14/15), both correct
    probabilities_NC = np.array([[0.55, 0.45], [0.55, 0.45], [0.1, 0.9], [0.08, 0.92]])
    labels_N = np.array([0, 1, 1, 1])
    expected = 2 / 4 * abs(0.5 - 0.55) + 2 / 4 * abs(1 - 0.91)
    assert metrics.compute_scores(probabilities_NC, labels_N, ("a", "b")).ece == pytest.approx(expected)


def test_calibration_error_is_computed_by_bin() -> None:
    # over- and under-confidence of equal size would cancel without bins: 0.6 always correct, 0.9 correct 6 times in 10
    top_N = np.array([0.6] * 10 + [0.9] * 10)
    probabilities_NC = np.stack([top_N, 1 - top_N], axis=1)
    labels_N = np.array([0] * 10 + [0] * 6 + [1] * 4)
    assert metrics.expected_calibration_error(probabilities_NC, labels_N) == pytest.approx((0.4 + 0.3) / 2)


@pytest.mark.parametrize("top", [1.0, 0.5])
def test_probabilities_on_the_edges_have_a_bin(top: float) -> None:
    probabilities_NC = np.array([[top, 1 - top]])
    assert metrics.expected_calibration_error(probabilities_NC, np.array([0])) == pytest.approx(1 - top)


def talkers(hits: list[float], utterances: int = 40) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return predictions, labels and speakers; each speaker has the given share of correct predictions by class."""
    predicted: list[int] = []
    labels: list[int] = []
    speakers: list[str] = []
    for speaker, share in enumerate(hits):
        for number in range(utterances):
            label = number % 2
            right = number // 2 < share * utterances / 2
            labels.append(label)
            predicted.append(label if right else 1 - label)
            speakers.append(f"s{speaker}")
    return certain(predicted, 2), np.array(labels), speakers


def test_interval_covers_the_estimate_and_is_deterministic() -> None:
    probabilities_NC, labels_N, speakers = talkers([0.5, 0.6, 0.7, 0.8, 0.9])
    bounds = metrics.bootstrap_interval(probabilities_NC, labels_N, speakers, seed=3)
    assert bounds is not None
    low, high = bounds
    assert 0.5 <= low < 0.7 < high <= 0.9
    assert bounds == metrics.bootstrap_interval(probabilities_NC, labels_N, speakers, seed=3)
    draws = [metrics.bootstrap_UR(probabilities_NC, labels_N, speakers, seed=seed) for seed in (3, 4)]
    assert not np.array_equal(*draws)


def test_interval_does_not_depend_on_the_order_of_utterances() -> None:
    probabilities_NC, labels_N, speakers = talkers([0.3, 0.6, 0.9])
    order = np.random.default_rng(0).permutation(len(labels_N))
    shuffled = metrics.bootstrap_interval(
        probabilities_NC[order], labels_N[order], [speakers[index] for index in order]
    )
    assert shuffled == metrics.bootstrap_interval(probabilities_NC, labels_N, speakers)


def test_interval_is_wider_when_speakers_differ_than_if_utterances_were_independent() -> None:
    probabilities_NC, labels_N, speakers = talkers([0.2, 0.4, 0.6, 0.8, 1.0])
    clustered = metrics.bootstrap_interval(probabilities_NC, labels_N, speakers)
    single = metrics.bootstrap_interval(probabilities_NC, labels_N, [str(number) for number in range(len(labels_N))])
    assert clustered is not None and single is not None
    assert clustered[1] - clustered[0] > 1.5 * (single[1] - single[0])


def test_interval_has_no_width_with_identical_speakers() -> None:
    assert metrics.bootstrap_interval(*talkers([0.75, 0.75, 0.75])) == pytest.approx((0.75, 0.75))


def test_interval_of_two_speakers_by_hand() -> None:
    # draws: both speakers (UR 0.75), twice the first (0.5), twice the second (1.0), a quarter of the time each end
    UR_D = metrics.bootstrap_UR(*talkers([0.5, 1.0]), draws=4000)
    assert UR_D is not None
    assert set(np.round(UR_D, 12)) == {0.5, 0.75, 1.0}
    assert (UR_D == 0.5).mean() == pytest.approx(0.25, abs=0.03)
    assert metrics.bootstrap_interval(*talkers([0.5, 1.0])) == pytest.approx((0.5, 1.0))


def test_interval_agrees_with_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(5)
    labels_N = rng.integers(3, size=300)
    probabilities_NC = rng.dirichlet(np.ones(3), size=300) * 0.6 + 0.4 * np.eye(3)[labels_N]
    speaker_N = rng.integers(8, size=300)
    right_N = probabilities_NC.argmax(axis=1) == labels_N
    UR = []
    for _ in range(3000):
        drawn = np.concatenate([np.flatnonzero(speaker_N == speaker) for speaker in rng.integers(8, size=8)])
        UR.append(np.mean([right_N[drawn][labels_N[drawn] == label].mean() for label in range(3)]))
    bounds = metrics.bootstrap_interval(probabilities_NC, labels_N, [str(speaker) for speaker in speaker_N], draws=3000)
    assert bounds == pytest.approx(tuple(np.quantile(UR, [0.025, 0.975])), abs=0.01)


def test_a_draw_without_a_class_has_no_nan() -> None:
    # each speaker has one class only
    probabilities_NC, labels_N = certain([0, 1, 0]), np.array([0, 1, 2])
    bounds = metrics.bootstrap_interval(probabilities_NC, labels_N, ["x", "y", "z"])
    assert bounds is not None and np.isfinite(bounds).all()


def test_one_speaker_has_no_interval() -> None:
    assert metrics.bootstrap_interval(*talkers([0.5])) is None


def test_models_on_the_same_speakers_are_resampled_together() -> None:
    probabilities_NC, labels_N, speakers = talkers([0.2, 0.5, 0.9])
    wrong_NC = 1 - probabilities_NC  # the second model is correct where the first is wrong
    first_D = metrics.bootstrap_UR(probabilities_NC, labels_N, speakers)
    second_D = metrics.bootstrap_UR(wrong_NC, labels_N, speakers)
    assert first_D is not None and second_D is not None
    np.testing.assert_allclose(first_D + second_D, 1)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.zeros((0, 3)), [], "no utterances"),
        (np.ones((2, 2)) / 2, [0, 1], r"shape \(2, 2\)"),
        (np.array([[2.0, -1.0, 0.0]]), [0], "not logits"),
        (np.array([[0.2, 0.2, 0.2]]), [0], "not logits"),
        (np.array([[np.nan, 0.5, 0.5]]), [0], "not finite"),
        (certain([0]), [3], "labels from 3 to 3"),
    ],
)
def test_invalid_input_is_refused(probabilities: np.ndarray, labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        metrics.compute_scores(probabilities, np.array(labels, dtype=int), ABC)


def test_speakers_must_match_utterances() -> None:
    with pytest.raises(DataError, match="found 1 speakers for 2 utterances"):
        metrics.bootstrap_interval(certain([0, 1]), np.array([0, 1]), ["x"])


def test_the_calibration_temperature_has_the_highest_likelihood():
    random = np.random.default_rng(0)
    logits_NC = random.standard_normal((400, 4))
    labels_N = (random.gumbel(size=(400, 4)) + logits_NC).argmax(axis=1)  # drawn with the softmax's probabilities

    def likelihood(temperature: float, scale: float) -> float:
        scaled_NC = scale * logits_NC / temperature
        return float((scaled_NC[np.arange(400), labels_N] - np.log(np.exp(scaled_NC).sum(axis=1))).mean())

    for scale in (0.5, 1.0, 3.0, 8.0):
        fitted = metrics.fit_temperature(scale * logits_NC, labels_N)
        assert fitted == pytest.approx(scale, rel=0.25)
        assert all(likelihood(fitted, scale) >= likelihood(fitted * near, scale) for near in (0.97, 1.03))


def test_a_calibration_temperature_has_bounds():
    logits_NC = np.eye(4)
    low, high = metrics.TEMPERATURE_BOUNDS
    assert metrics.fit_temperature(logits_NC, np.arange(4)) == pytest.approx(low)
    assert metrics.fit_temperature(logits_NC, np.arange(4)[::-1]) == pytest.approx(high)
