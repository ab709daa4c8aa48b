"""Compute recalls, F1 and calibration; `lakd_ray.statistics` computes their intervals.

UR and WR are the paper's names: UR (unweighted recall) is UAR (unweighted average recall) or balanced accuracy in other
work, and WR (weighted recall) is WA (weighted accuracy), that is, accuracy.

All metrics except calibration are functions of the confusion matrix, so one formula serves a single score and the
scores without each test speaker.

To add a metric, write its function here, add a field to `Scores` and compute it in `compute_scores`.
`lakd_ray.report` explains how to add it to the report's rows and where to show it.

Predictions may have weights: where several models have predicted an utterance, each prediction weighs its share of one
utterance, and counts are fractions.

Shapes: N predictions, C classes, S clusters, L languages, M bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lakd_ray.errors import DataError

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
CountArray = npt.NDArray[np.integer[Any]] | npt.NDArray[np.floating[Any]]  # fractions where predictions have weights

TEMPERATURE_BOUNDS = (0.25, 10.0)  # bounds of the fitted calibration temperature
NUM_BINS = 15  # bins of the calibration error, as in Guo et al. 2017


@dataclass(frozen=True)
class Scores:
    """The scores of one model on one set of utterances; shares are in [0, 1]."""

    UR: float
    """Unweighted recall (UAR): mean recall over the classes present in the labels."""
    WR: float
    """Weighted recall (WA, accuracy): the share of correct utterances."""
    macro_f1: float
    """Mean F1 over the classes present in the labels."""
    ece: float
    """Expected calibration error of the top probability, 15 equal-width bins."""
    n: int
    """Number of utterances, which is the sum of the weights."""
    recall: dict[str, float | None]
    """Recall of each emotion; None where no utterance has it."""
    confusion: list[list[float]]
    """Utterances by truth (rows) and prediction (columns)."""


def compute_scores(
    probabilities_NC: FloatArray, labels_N: IntArray, emotions: Sequence[str], weights_N: FloatArray | None = None
) -> Scores:
    """Score predictions; the predicted class is the first one with the highest probability.

    Args:
        probabilities_NC: one distribution over the classes per utterance.
        labels_N: true classes as indices in `emotions`.
        emotions: names of the classes, in the order of the class axis.
        weights_N: weight of each prediction; None for one prediction per utterance, which weighs one.

    Raises:
        DataError: there are no utterances, or the arrays are not probabilities and labels of the same C classes.
    """
    check_predictions(probabilities_NC, labels_N, len(emotions))
    confusion_CC = confusion_matrix(probabilities_NC, labels_N, weights_N)
    truths_C = confusion_CC.sum(axis=1)
    hits_C = confusion_CC.diagonal()
    present_C = truths_C > 0
    # F1 = 2 hits / (truths + predictions); with a truth in the class the denominator is never zero
    f1_P = 2 * hits_C[present_C] / (truths_C + confusion_CC.sum(axis=0))[present_C]
    return Scores(
        UR=float(unweighted_recall(confusion_CC)),
        WR=float(hits_C.sum() / truths_C.sum()),
        macro_f1=float(f1_P.mean()),
        ece=expected_calibration_error(probabilities_NC, labels_N, weights_N),
        n=round(float(confusion_CC.sum())),
        recall={
            emotion: float(hits / truths) if truths else None
            for emotion, hits, truths in zip(emotions, hits_C, truths_C, strict=True)
        },
        confusion=confusion_CC.tolist(),
    )


def cluster_confusions(
    probabilities_NC: FloatArray,
    labels_N: IntArray,
    clusters: Sequence[str],
    cluster_names: Sequence[str],
    weights_N: FloatArray | None = None,
) -> npt.NDArray[np.float64]:
    """Return a confusion matrix for each of the named clusters, shape [S, C, C]; predictions may have weights.

    A cluster is a speaker, or a session in which speakers talk to each other.
    """
    C = probabilities_NC.shape[1]
    index = {name: number for number, name in enumerate(cluster_names)}
    cluster_N = np.array([index[cluster] for cluster in clusters], dtype=np.int64)
    confusion_SCC = np.zeros((len(cluster_names), C, C))
    cells = cluster_N, labels_N, probabilities_NC.argmax(axis=1)
    np.add.at(confusion_SCC, cells, 1.0 if weights_N is None else weights_N)
    return confusion_SCC


def confusion_matrix(
    probabilities_NC: FloatArray, labels_N: IntArray, weights_N: FloatArray | None = None
) -> npt.NDArray[Any]:
    """Return the confusion matrix [C, C]: utterances by truth (rows) and most probable class (columns).

    Its entries are integers, or floats if predictions have weights.
    """
    C = probabilities_NC.shape[1]
    cells_N = labels_N * C + probabilities_NC.argmax(axis=1)
    return np.bincount(cells_N, weights=weights_N, minlength=C * C).reshape(C, C)


def unweighted_recall(confusion_XCC: CountArray) -> FloatArray:
    """Return the mean recall over classes with a truth, of one confusion matrix or a stack: (..., C, C) -> (...).

    A class without a truth has no recall; it is excluded from the mean, not counted as zero. Without any truth the
    result is NaN.
    """
    truths_XC = confusion_XCC.sum(axis=-1)
    hits_XC = np.diagonal(confusion_XCC, axis1=-2, axis2=-1)
    recall_XC = hits_XC / np.where(truths_XC > 0, truths_XC, 1)  # 0 for an absent class
    return _divide_or_nan(recall_XC.sum(axis=-1), (truths_XC > 0).sum(axis=-1))


def accuracy(confusion_XCC: CountArray) -> FloatArray:
    """Return the share of correct utterances (WR), of one confusion matrix or a stack: (..., C, C) -> (...)."""
    hits_X = np.diagonal(confusion_XCC, axis1=-2, axis2=-1).sum(axis=-1)
    return _divide_or_nan(hits_X, confusion_XCC.sum(axis=(-2, -1)))


def mean_recall_over_languages(confusion_XLCC: CountArray) -> FloatArray:
    """Return the mean of UR over the languages that have utterances: (..., L, C, C) -> (...).

    Each language weighs the same; in UR of the sum over languages, each utterance of a class does.
    """
    return _mean_over_languages(unweighted_recall(confusion_XLCC))


def mean_accuracy_over_languages(confusion_XLCC: CountArray) -> FloatArray:
    """Return the mean of WR over the languages that have utterances: (..., L, C, C) -> (...)."""
    return _mean_over_languages(accuracy(confusion_XLCC))


def _mean_over_languages(score_XL: FloatArray) -> FloatArray:
    present_XL = ~np.isnan(score_XL)
    return _divide_or_nan(np.where(present_XL, score_XL, 0).sum(axis=-1), present_XL.sum(axis=-1))


def _divide_or_nan(totals_X: FloatArray, counts_X: CountArray) -> FloatArray:
    quotients_X: FloatArray = np.where(counts_X > 0, totals_X / np.where(counts_X > 0, counts_X, 1), np.nan)
    return quotients_X


def expected_calibration_error(
    probabilities_NC: FloatArray, labels_N: IntArray, weights_N: FloatArray | None = None
) -> float:
    """Return the expected calibration error of the top probability.

    ECE = sum_m n_m / N * |accuracy_m - confidence_m|, bins (0, 1/15], ..., (14/15, 1] of the top probability.

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, eq. 5.
    """
    weights_N = np.ones(len(labels_N)) if weights_N is None else weights_N
    top_N = probabilities_NC.max(axis=1).astype(np.float64)
    right_N = probabilities_NC.argmax(axis=1) == labels_N
    bin_N = np.clip(np.ceil(top_N * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    # n_m / N * |accuracy_m - confidence_m| = |sum over the bin of (right - confidence)| / N
    gap_M = np.bincount(bin_N, weights=weights_N * (right_N - top_N), minlength=NUM_BINS)
    return float(np.abs(gap_M).sum() / weights_N.sum())


def fit_temperature(logits_NC: FloatArray, labels_N: IntArray) -> float:
    """Return the T that maximizes the likelihood of the labels by softmax(logits / T) (Guo et al. 2017, section 4.2).

    T is limited to `TEMPERATURE_BOUNDS`: it has no bound for a model that is correct on every utterance of a small dev
    set.

    Args:
        logits_NC: logits of N utterances that the model was not trained on.
        labels_N: the classes of the utterances.
    """
    logits_NC = np.asarray(logits_NC, dtype=np.float64)
    truths_N = logits_NC[np.arange(len(labels_N)), labels_N]

    def slope(inverse: float) -> float:
        """Return the derivative of the mean negative log-likelihood with respect to 1/T, in which it is convex."""
        weights_NC = np.exp(inverse * (logits_NC - logits_NC.max(axis=1, keepdims=True)))
        means_N = (weights_NC * logits_NC).sum(axis=1) / weights_NC.sum(axis=1)
        return float((means_N - truths_N).mean())

    low, high = 1 / TEMPERATURE_BOUNDS[1], 1 / TEMPERATURE_BOUNDS[0]
    for _ in range(60):  # bisection: the slope only rises
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


def check_predictions(probabilities_NC: FloatArray, labels_N: IntArray, num_classes: int) -> None:
    """Raise a DataError unless there are utterances, and these are their probabilities and labels."""
    shape = np.shape(probabilities_NC)
    if len(labels_N) == 0:
        raise DataError("there are no utterances to score: expected at least one prediction")
    if shape != (len(labels_N), num_classes):
        raise DataError(
            f"found probabilities of shape {shape} for {len(labels_N)} labels and {num_classes} classes: "
            f"expected ({len(labels_N)}, {num_classes}), one row per utterance and one column per class"
        )
    # written so that a NaN fails as well
    if not (np.all(probabilities_NC >= 0) and np.all(np.abs(probabilities_NC.sum(axis=1) - 1) < 1e-3)):
        raise DataError(
            "found rows that are negative, not finite or do not sum to 1: expected probabilities, not logits"
        )
    if labels_N.min() < 0 or labels_N.max() >= num_classes:
        raise DataError(f"found labels from {labels_N.min()} to {labels_N.max()}: expected 0 to {num_classes - 1}")
