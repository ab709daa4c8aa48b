"""Intervals and tests for scores on few test speakers and few training seeds.

Test utterances are not independent: those of a speaker, or of a session whose speakers talk to each other, vary
together. Such a unit is a cluster. A jackknife over clusters estimates how much a score varies with the test speakers,
the values of the seeds show how much it varies with the training run, and quantiles of Student's t correct for their
small numbers. `benchmarks/statistics_simulation.py` measures how often intervals cover and tests decide by chance.

Every model is tested on the same clusters, so seeds and clusters are crossed. Clusters are nested in strata, which are
fixed: the languages.

Shapes: A seeds, S clusters, E standard errors; X are further dimensions, usually the confusion matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from lakd_ray import metrics
from lakd_ray.errors import DataError
from lakd_ray.metrics import CountArray, FloatArray, IntArray

CONFIDENCE_LEVEL = 0.95
SIGNIFICANCE = 0.05  # of an adjusted p-value
_ROUNDING_ERROR = 1e-9
MIN_SEEDS = 3  # below, a comparison has no verdict: two seeds give a spread with one degree of freedom, one seed none


class StandardErrors(NamedTuple):
    """Standard errors of one estimate, each with its degrees of freedom; the one with the widest interval decides."""

    value_E: FloatArray
    degrees_E: FloatArray

    def half_width(self) -> FloatArray:
        """Return half the width of the 95 % interval."""
        half_E: FloatArray = stdtrit(self.degrees_E, (1 + CONFIDENCE_LEVEL) / 2) * self.value_E
        return np.asarray(half_E.max(axis=0))

    def p_value(self, estimate: FloatArray) -> FloatArray:
        """Return the two-sided p-value of an estimate against zero; below 0.05, the interval excludes zero.

        An error of zero shows no variation, which a few speakers with few utterances may have by chance, so the p-value
        is then one.
        """
        varies_E = self.value_E > _ROUNDING_ERROR
        t_E = np.divide(np.abs(estimate), self.value_E, out=np.zeros(self.value_E.shape), where=varies_E)
        p_E: FloatArray = 2 * stdtr(self.degrees_E, -t_E)
        return np.asarray(p_E.max(axis=0))


@dataclass(frozen=True)
class Jackknife:
    """A score by seed, on all clusters and without each of them; differences of two are paired."""

    value_A: FloatArray
    without_AS: FloatArray
    strata_S: npt.NDArray[np.integer[Any]]
    """Number of the stratum of each cluster, from 0; each stratum has at least two clusters."""

    def __sub__(self, other: "Jackknife") -> "Jackknife":
        """Return the paired difference of two scores on the same clusters."""
        return Jackknife(self.value_A - other.value_A, self.without_AS - other.without_AS, self.strata_S)

    @property
    def estimate(self) -> FloatArray:
        """The mean of the score over the seeds."""
        return np.asarray(self.value_A.mean(axis=0))

    def standard_errors(self) -> StandardErrors:
        """Return the standard errors over clusters and, with several seeds, over clusters and seeds.

        With one seed, the interval is that of this model over the population of speakers; with several, that of the
        expectation over seeds and speakers. Clusters alone decide where they give the wider interval: the degrees of
        freedom of the sum are an estimate, which is too high where the variance over few clusters happens to be small.

        The variance over both is that over clusters plus that over seeds minus the interaction, which both contain
        (Cameron, Gelbach and Miller 2011), and at least the larger of the two.
        """
        variance_H, degrees_H = self._cluster_variances()
        clusters = variance_H.sum(axis=0)
        over_clusters = np.sqrt(clusters), _combined_degrees(variance_H, degrees_H)
        A = len(self.value_A)
        if A == 1:
            return StandardErrors(*(np.stack([part]) for part in over_clusters))
        seeds = self.value_A.var(axis=0, ddof=1) / A
        both = np.maximum(np.maximum(clusters, seeds), clusters + seeds - self._interaction_variance())
        degrees = _combined_degrees(np.stack([*variance_H, seeds]), np.append(degrees_H, A - 1))
        return StandardErrors(np.stack([over_clusters[0], np.sqrt(both)]), np.stack([over_clusters[1], degrees]))

    def comparison_errors(self) -> StandardErrors:
        """Return the standard errors of a comparison: over clusters, over both, and over seeds alone.

        Models that differ in nothing but the seed are distinguished by the seeds alone, where a t test over the seeds
        is exact; the other errors are for settings that differ on these speakers but not on all speakers.
        """
        errors = self.standard_errors()
        if len(self.value_A) == 1:
            return errors
        seeds = standard_error_over_seeds(self.value_A)
        degrees = np.broadcast_to(seeds.degrees_E, seeds.value_E.shape)
        return StandardErrors(
            np.concatenate([errors.value_E, seeds.value_E]), np.concatenate([errors.degrees_E, degrees])
        )

    def _strata(self) -> list[npt.NDArray[np.bool_]]:
        return [self.strata_S == stratum for stratum in range(int(self.strata_S.max()) + 1)]

    def _cluster_variances(self) -> tuple[FloatArray, FloatArray]:
        """Return the variance of the estimate from the clusters of each stratum, with its degrees of freedom."""
        mean_S = self.without_AS.mean(axis=0)
        variances, degrees = [], []
        for stratum in self._strata():
            own, count = mean_S[stratum], int(stratum.sum())
            variances.append((count - 1) / count * ((own - own.mean(axis=0)) ** 2).sum(axis=0))
            degrees.append(count - 1.0)
        return np.stack(variances), np.array(degrees)

    def _interaction_variance(self) -> FloatArray:
        """Return the variance of the estimate from the interaction of seeds and clusters."""
        A = len(self.value_A)
        total: FloatArray = np.zeros(self.value_A.shape[1:])
        for stratum in self._strata():
            own_AS, count = self.without_AS[:, stratum], int(stratum.sum())
            rest_AS = own_AS - own_AS.mean(axis=0) - own_AS.mean(axis=1, keepdims=True) + own_AS.mean(axis=(0, 1))
            total = total + (count - 1) / count * (rest_AS**2).sum(axis=(0, 1)) / (A * (A - 1))
        return total


def jackknife(
    counts_ASX: CountArray, score: Callable[[CountArray], FloatArray], strata: Sequence[str]
) -> Jackknife | None:
    """Compute a score without each cluster; the others of its stratum then weigh more, so that strata keep their share.

    Args:
        counts_ASX: what the score is computed from, as sums over the utterances of each seed and cluster; usually
            confusion matrices, [A, S, C, C].
        score: computes the score from the sum over clusters, over the last dimensions.
        strata: the stratum of each cluster, usually its language.

    Returns:
        The jackknife; None if a stratum has only one cluster, which shows no variation over speakers.
    """
    names, strata_S = np.unique(list(strata), return_inverse=True)
    sizes_S = np.bincount(strata_S, minlength=len(names))[strata_S]
    if not len(sizes_S) or sizes_S.min() < 2:
        return None
    total_AX = counts_ASX.sum(axis=1)
    without_ASX = np.empty(counts_ASX.shape)
    for stratum in range(len(names)):
        own_S = strata_S == stratum
        count = int(own_S.sum())
        own_AX = counts_ASX[:, own_S].sum(axis=1)
        rest_ASX = own_AX[:, None] - counts_ASX[:, own_S]
        without_ASX[:, own_S] = (total_AX - own_AX)[:, None] + count / (count - 1) * rest_ASX
    # a class that only this cluster has: fractional counts leave a rounding error, of which a recall would be computed
    without_ASX[np.abs(without_ASX) < _ROUNDING_ERROR] = 0
    return Jackknife(score(total_AX), score(without_ASX), strata_S)


def standard_error_over_seeds(values_A: FloatArray) -> StandardErrors:
    """Return the standard error of a mean over at least two seeds."""
    A = len(values_A)
    return StandardErrors(np.stack([values_A.std(axis=0, ddof=1) / np.sqrt(A)]), np.array([A - 1.0]))


def interval(
    estimate: FloatArray | float, errors: StandardErrors, bounds: tuple[float, float]
) -> tuple[float, float] | None:
    """Return the 95 % interval of a single estimate, limited to the possible values of the score.

    The result is None without any variation: an interval without a width would claim certainty.
    """
    half = errors.half_width()
    if half <= _ROUNDING_ERROR:
        return None
    low, high = np.clip([estimate - half, estimate + half], *bounds)
    return float(low), float(high)


def recall_interval(
    probabilities_NC: FloatArray, labels_N: IntArray, speakers: Sequence[str]
) -> tuple[float, float] | None:
    """Return the 95 % interval of one model's UR over the population of speakers.

    The result is None with fewer than two speakers, and where all have the same UR. Utterances of a speaker are not
    independent, so this is a jackknife over speakers with Student's t.

    Args:
        probabilities_NC: one distribution over the classes per utterance.
        labels_N: true classes.
        speakers: the speaker of each utterance, or its session where the speakers of a session talk to each other.

    Raises:
        DataError: the arrays are not probabilities, labels and speakers of the same utterances.
    """
    metrics.check_predictions(probabilities_NC, labels_N, np.shape(probabilities_NC)[-1])
    if len(speakers) != len(labels_N):
        raise DataError(f"found {len(speakers)} speakers for {len(labels_N)} utterances: expected one for each")
    names = sorted(set(speakers))
    confusion_SCC = metrics.cluster_confusions(probabilities_NC, labels_N, speakers, names)
    model = jackknife(confusion_SCC[None], metrics.unweighted_recall, [""] * len(names))
    return None if model is None else interval(model.estimate, model.standard_errors(), (0, 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust the p-values of several tests so that any false decision among them has at most the nominal probability.

    None stands for a comparison without a test. Holm, "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 6, 1979.
    """
    tests = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tests):
        largest = max(largest, min(1.0, (len(tests) - rank) * p))
        adjusted[index] = largest
    return adjusted


def format_p(p: float | None) -> str:
    """Format a p-value such as `0.012`, or None as a dash."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def describe_p(p: float) -> str:
    """Return a p-value with its sign, such as `p = 0.012` or `p < 0.001`."""
    text = format_p(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _combined_degrees(variance_H: FloatArray, degrees_H: FloatArray) -> FloatArray:
    """Return the degrees of freedom of a sum of variances (Welch 1947), at least one and at most their sum.

    Welch's form, (sum v)^2 / sum(v^2 / (d + 2)) - 2, corrects for the error of the variances v themselves, unlike
    Satterthwaite's; for a single variance it is exactly its d.
    """
    degrees_HX = degrees_H.reshape(-1, *[1] * (variance_H.ndim - 1))
    squares = (variance_H**2 / (degrees_HX + 2)).sum(axis=0)
    ratio = np.divide(variance_H.sum(axis=0) ** 2, squares, out=np.full(squares.shape, np.inf), where=squares > 0)
    combined: FloatArray = np.clip(ratio - 2, 1.0, degrees_H.sum())
    return combined
