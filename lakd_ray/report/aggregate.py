"""What several folds and seeds say together: each test utterance once for each seed, means and intervals over seeds.

Shapes: A seeds, S speakers, N utterances, C classes, D bootstrap draws.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np
import numpy.typing as npt

from lakd_ray import metrics
from lakd_ray.labels import POOLED
from lakd_ray.report.predictions import TEACHER, Predictions, concatenate_predictions
from lakd_ray.report.rows import ResultRow, format_title


@dataclass(frozen=True)
class SeedAggregate:
    """A paradigm in a set-up with some settings, over all folds, once for each seed."""

    paradigm: str
    setup: str
    variant: str | None
    by_seed: dict[int, Predictions]

    @property
    def name(self) -> str:
        """Names it among the others."""
        return "-".join(filter(None, [self.paradigm, self.setup, self.variant]))

    def select_languages(self, languages: Sequence[str]) -> "SeedAggregate":
        """The part in some languages."""
        return replace(self, by_seed={seed: one.select_languages(languages) for seed, one in self.by_seed.items()})


def aggregate_seeds(predictions: Iterable[Predictions]) -> list[SeedAggregate]:
    """Predictions of many runs, put together. Teachers of one language count in that language alone.

    Corpora with fewer folds come round again while the others go on: of an utterance that is tested in several folds
    the first fold counts.
    """
    groups: dict[tuple[str, str, str | None], dict[int, list[Predictions]]] = {}
    for one in predictions:
        key = (one.paradigm, one.setup, one.variant)
        groups.setdefault(key, {}).setdefault(one.seed, []).append(
            one.select_languages(one.trained_languages) if one.trained_languages else one
        )
    return [
        SeedAggregate(*key, {seed: _keep_first_fold(members) for seed, members in sorted(by_seed.items())})
        for key, by_seed in groups.items()
    ]


def _keep_first_fold(predictions: Sequence[Predictions]) -> Predictions:
    all_folds = concatenate_predictions(sorted(predictions, key=lambda one: one.fold))
    _, first = np.unique(all_folds.utterance_N, return_index=True)
    return all_folds.take(first)


def build_aggregate_rows(
    aggregate: SeedAggregate, languages: Sequence[str], emotions: Sequence[str]
) -> list[ResultRow]:
    """A row for each language that the pool has utterances of, then one for all of them."""
    present = {str(code) for one in aggregate.by_seed.values() for code in np.unique(one.language_N)}
    parts = [(code, aggregate.select_languages([code])) for code in languages if code in present]
    return [_build_row(part, code, emotions) for code, part in [*parts, (POOLED, aggregate)]]


def _build_row(aggregate: SeedAggregate, language: str, emotions: Sequence[str]) -> ResultRow:
    scores = [
        metrics.compute_scores(one.probabilities_NC, one.labels_N, emotions) for one in aggregate.by_seed.values()
    ]
    shared = _restrict_to_shared_utterances([aggregate])
    drawn = metrics.bootstrap_over_seeds(_confusions_by_speaker(shared)[0]) if shared else None
    recalls = {emotion: [score.recall[emotion] for score in scores] for emotion in emotions}
    return ResultRow(
        paradigm=aggregate.paradigm,
        setup=aggregate.setup,
        variant=aggregate.variant,
        unknown=", ".join(sorted({one.unknown for one in aggregate.by_seed.values()} - {""})),
        model=aggregate.name,
        language=language,
        fold=None,
        seed=None,
        n=max(score.n for score in scores),
        UR=mean(score.UR for score in scores),
        UR_interval=None if drawn is None else list(metrics.percentile_interval(drawn[0])),
        WR=mean(score.WR for score in scores),
        macro_f1=mean(score.macro_f1 for score in scores),
        ece=mean(score.ece for score in scores),
        recall={emotion: _mean_ignoring_none(values) for emotion, values in recalls.items()},
        confusion=np.sum([score.confusion for score in scores], axis=0).tolist(),
    )


def _mean_ignoring_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


@dataclass(frozen=True)
class PairedDifference:
    """One pool's UR less another's, over the seeds and utterances that both have."""

    UR: float
    interval: tuple[float, float] | None
    """95 %, paired over seeds and speakers; None where there are fewer than two speakers."""
    seeds: int
    speakers: int


def paired_difference(upper: SeedAggregate, lower: SeedAggregate, emotions: Sequence[str]) -> PairedDifference | None:
    """The paired difference; None if they have no seed or no utterance in common."""
    seeds = upper.by_seed.keys() & lower.by_seed.keys()
    sides = _restrict_to_shared_utterances(
        [replace(pool, by_seed={seed: pool.by_seed[seed] for seed in sorted(seeds)}) for pool in (upper, lower)]
    )
    if sides is None:
        return None
    UR = [
        mean(metrics.compute_scores(one.probabilities_NC, one.labels_N, emotions).UR for one in side.by_seed.values())
        for side in sides
    ]
    confusions = _confusions_by_speaker(sides)
    drawn = [metrics.bootstrap_over_seeds(each) for each in confusions]
    interval = None
    if drawn[0] is not None and drawn[1] is not None:
        interval = metrics.percentile_interval(drawn[0][0] - drawn[1][0])
    return PairedDifference(UR[0] - UR[1], interval, len(seeds), confusions[0].shape[1])


def _restrict_to_shared_utterances(aggregates: Sequence[SeedAggregate]) -> list[SeedAggregate] | None:
    """The utterances that all seeds of all pools have: fewer than there are where runs are missing."""
    every = [set(one.utterance_N.tolist()) for pool in aggregates for one in pool.by_seed.values()]
    shared = np.array(sorted(set.intersection(*every))) if every else np.array([])
    if not len(shared):
        return None
    return [
        replace(pool, by_seed={seed: _select_utterances(one, shared) for seed, one in pool.by_seed.items()})
        for pool in aggregates
    ]


def _select_utterances(predictions: Predictions, utterances: npt.NDArray[np.str_]) -> Predictions:
    order_N = np.argsort(predictions.utterance_N)
    return predictions.take(order_N[np.searchsorted(predictions.utterance_N[order_N], utterances)])


def _confusions_by_speaker(aggregates: Sequence[SeedAggregate]) -> list[npt.NDArray[np.int64]]:
    """Confusion matrices of each pool by seed and speaker, the same speakers in all, shape [A, S, C, C]."""
    names = sorted({str(name) for pool in aggregates for one in pool.by_seed.values() for name in one.speaker_N})
    return [
        np.stack(
            [
                metrics.speaker_confusions(one.probabilities_NC, one.labels_N, one.speaker_N.tolist(), names)
                for one in pool.by_seed.values()
            ]
        )
        for pool in aggregates
    ]


def compare_aggregates(
    aggregates: Sequence[SeedAggregate], emotions: Sequence[str], reference_paradigm: str = "mtkd"
) -> list[str]:
    """MTKD against the other paradigms, and every variant against the experiment's own settings, in sentences."""
    own = {
        (pool.paradigm, pool.setup): pool for pool in aggregates if pool.variant is None and pool.paradigm != TEACHER
    }
    pairs = [
        (own[reference_paradigm, setup], other)
        for (paradigm, setup), other in own.items()
        if paradigm != reference_paradigm and (reference_paradigm, setup) in own
    ]
    pairs += [
        (pool, own[pool.paradigm, pool.setup])
        for pool in aggregates
        if pool.variant is not None and (pool.paradigm, pool.setup) in own
    ]
    sentences = [_describe_difference(one, other, paired_difference(one, other, emotions)) for one, other in pairs]
    if len(sentences) > 1:
        sentences.append(
            f"These are {len(sentences)} comparisons with intervals of 95 % each, not corrected for their number: one "
            "in twenty would exclude zero by chance."
        )
    return sentences


def _describe_difference(first: SeedAggregate, second: SeedAggregate, difference: PairedDifference | None) -> str:
    names = " against ".join(format_title(pool.paradigm, pool.setup, pool.variant) for pool in (first, second))
    if difference is None:
        return f"{names}: nothing in common to compare."
    over = f"over {difference.seeds} seed{'s' * (difference.seeds > 1)} and {difference.speakers} speakers"
    points = f"{100 * difference.UR:+.1f} points of UR"
    if difference.interval is None:
        return f"{names}: {points} {over}; no interval can be given."
    low, high = (100 * bound for bound in difference.interval)
    verdict = "better" if low > 0 else "worse" if high < 0 else "not decided: the interval includes zero"
    return f"{names}: {points}, paired 95 % interval {low:+.1f} to {high:+.1f} {over}; {verdict}."
