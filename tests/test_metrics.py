"""Metrics compared with values computed by hand and with scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from lakd_ray import metrics
from lakd_ray.errors import DataError
from lakd_ray.statistics import recall_interval

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


def test_interval_of_speakers_of_equal_size_is_students_t() -> None:
    shares = [0.5, 0.6, 0.7, 0.8, 0.9]
    bounds = recall_interval(*talkers(shares))
    assert bounds == pytest.approx(stats.t.interval(0.95, 4, np.mean(shares), stats.sem(shares)))


def test_interval_does_not_depend_on_the_order_of_utterances() -> None:
    probabilities_NC, labels_N, speakers = talkers([0.3, 0.6, 0.9])
    order = np.random.default_rng(0).permutation(len(labels_N))
    shuffled = recall_interval(probabilities_NC[order], labels_N[order], [speakers[index] for index in order])
    assert shuffled == pytest.approx(recall_interval(probabilities_NC, labels_N, speakers))


def test_interval_is_wider_when_speakers_differ_than_if_utterances_were_independent() -> None:
    probabilities_NC, labels_N, speakers = talkers([0.2, 0.4, 0.6, 0.8, 1.0])
    clustered = recall_interval(probabilities_NC, labels_N, speakers)
    single = recall_interval(probabilities_NC, labels_N, [str(number) for number in range(len(labels_N))])
    assert clustered is not None and single is not None
    assert clustered[1] - clustered[0] > 1.5 * (single[1] - single[0])


def test_interval_is_limited_to_shares_and_needs_two_speakers() -> None:
    assert recall_interval(*talkers([0.75, 0.75, 0.75])) is None  # the same scores are no certainty
    assert recall_interval(*talkers([0.5, 1.0])) == (0, 1)
    assert recall_interval(*talkers([0.5])) is None


def test_classes_of_one_speaker_give_no_nan() -> None:
    bounds = recall_interval(certain([0, 1, 0]), np.array([0, 1, 2]), ["x", "y", "z"])
    assert bounds is not None and np.isfinite(bounds).all()


def test_means_over_languages_leave_out_languages_without_utterances() -> None:
    confusion_LCC = np.zeros((3, 2, 2))
    confusion_LCC[0] = [[3, 1], [2, 2]]  # UR (0.75 + 0.5) / 2
    confusion_LCC[1, 0] = [1, 3]  # one class: UR and WR 0.25
    assert metrics.accuracy(confusion_LCC)[:2] == pytest.approx([5 / 8, 1 / 4])
    assert np.isnan(metrics.accuracy(confusion_LCC)[2])
    assert metrics.mean_recall_over_languages(confusion_LCC) == pytest.approx((0.625 + 0.25) / 2)
    assert metrics.mean_accuracy_over_languages(confusion_LCC) == pytest.approx((5 / 8 + 1 / 4) / 2)


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
        recall_interval(certain([0, 1]), np.array([0, 1]), ["x"])


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
