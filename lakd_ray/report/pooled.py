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
from lakd_ray.report.predictions import TEACHER, Predictions, joined
from lakd_ray.report.rows import Row, title


@dataclass(frozen=True)
class Pool:
    """A paradigm in a set-up with some settings, over all folds, once for each seed."""

    paradigm: str
    setup: str
    variant: str | None
    by_seed: dict[int, Predictions]

    @property
    def name(self) -> str:
        """Names it among the others."""
        return "-".join(filter(None, [self.paradigm, self.setup, self.variant]))

    def only(self, languages: Sequence[str]) -> "Pool":
        """The part in some languages."""
        return replace(self, by_seed={seed: one.only(languages) for seed, one in self.by_seed.items()})


def pools(found: Iterable[Predictions]) -> list[Pool]:
    """Predictions of many runs, put together. Teachers of one language count in that language alone.

    Corpora with fewer folds come round again while the others go on: of an utterance that is tested in several folds
    the first fold counts.
    """
    groups: dict[tuple[str, str, str | None], dict[int, list[Predictions]]] = {}
    for one in found:
        key = (one.paradigm, one.setup, one.variant)
        groups.setdefault(key, {}).setdefault(one.seed, []).append(one.only(one.learned) if one.learned else one)
    return [
        Pool(*key, {seed: _once(members) for seed, members in sorted(by_seed.items())})
        for key, by_seed in groups.items()
    ]


def _once(members: Sequence[Predictions]) -> Predictions:
    all_folds = joined(sorted(members, key=lambda one: one.fold))
    _, first = np.unique(all_folds.utterance_N, return_index=True)
    return all_folds.at(first)


def rows_of(pool: Pool, languages: Sequence[str], emotions: Sequence[str]) -> list[Row]:
    """A row for each language that the pool has utterances of, then one for all of them."""
    present = {str(code) for one in pool.by_seed.values() for code in np.unique(one.language_N)}
    parts = [(code, pool.only([code])) for code in languages if code in present]
    return [_row(part, code, emotions) for code, part in [*parts, (POOLED, pool)]]


def _row(pool: Pool, language: str, emotions: Sequence[str]) -> Row:
    scores = [metrics.score(one.probabilities_NC, one.labels_N, emotions) for one in pool.by_seed.values()]
    shared = _shared([pool])
    drawn = metrics.resample_seeds(_confusions(shared)[0]) if shared else None
    recalls = {emotion: [score.recall[emotion] for score in scores] for emotion in emotions}
    return Row(
        paradigm=pool.paradigm,
        setup=pool.setup,
        variant=pool.variant,
        unknown=", ".join(sorted({one.unknown for one in pool.by_seed.values()} - {""})),
        model=pool.name,
        language=language,
        fold=None,
        seed=None,
        n=max(score.n for score in scores),
        UR=mean(score.UR for score in scores),
        UR_interval=None if drawn is None else list(metrics.percentiles(drawn[0])),
        WR=mean(score.WR for score in scores),
        macro_f1=mean(score.macro_f1 for score in scores),
        ece=mean(score.ece for score in scores),
        recall={emotion: _mean(values) for emotion, values in recalls.items()},
        confusion=np.sum([score.confusion for score in scores], axis=0).tolist(),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


@dataclass(frozen=True)
class Difference:
    """One pool's UR less another's, over the seeds and utterances that both have."""

    UR: float
    interval: tuple[float, float] | None
    """95 %, paired over seeds and speakers; None where there are fewer than two speakers."""
    seeds: int
    speakers: int


def difference(upper: Pool, lower: Pool, emotions: Sequence[str]) -> Difference | None:
    """The paired difference; None if they have no seed or no utterance in common."""
    seeds = upper.by_seed.keys() & lower.by_seed.keys()
    sides = _shared(
        [replace(pool, by_seed={seed: pool.by_seed[seed] for seed in sorted(seeds)}) for pool in (upper, lower)]
    )
    if sides is None:
        return None
    UR = [
        mean(metrics.score(one.probabilities_NC, one.labels_N, emotions).UR for one in side.by_seed.values())
        for side in sides
    ]
    confusions = _confusions(sides)
    drawn = [metrics.resample_seeds(each) for each in confusions]
    interval = None
    if drawn[0] is not None and drawn[1] is not None:
        interval = metrics.percentiles(drawn[0][0] - drawn[1][0])
    return Difference(UR[0] - UR[1], interval, len(seeds), confusions[0].shape[1])


def _shared(sides: Sequence[Pool]) -> list[Pool] | None:
    """The utterances that all seeds of all pools have: fewer than there are where runs are missing."""
    every = [set(one.utterance_N.tolist()) for pool in sides for one in pool.by_seed.values()]
    shared = np.array(sorted(set.intersection(*every))) if every else np.array([])
    if not len(shared):
        return None
    return [replace(pool, by_seed={seed: _of(one, shared) for seed, one in pool.by_seed.items()}) for pool in sides]


def _of(one: Predictions, utterances: npt.NDArray[np.str_]) -> Predictions:
    order_N = np.argsort(one.utterance_N)
    return one.at(order_N[np.searchsorted(one.utterance_N[order_N], utterances)])


def _confusions(pools: Sequence[Pool]) -> list[npt.NDArray[np.int64]]:
    """Confusion matrices of each pool by seed and speaker, the same speakers in all, shape [A, S, C, C]."""
    names = sorted({str(name) for pool in pools for one in pool.by_seed.values() for name in one.speaker_N})
    return [
        np.stack(
            [
                metrics.confusions(one.probabilities_NC, one.labels_N, one.speaker_N.tolist(), names)
                for one in pool.by_seed.values()
            ]
        )
        for pool in pools
    ]


def comparisons(found: Sequence[Pool], emotions: Sequence[str], judged: str = "mtkd") -> list[str]:
    """MTKD against the other paradigms, and every variant against the experiment's own settings, in sentences."""
    own = {(pool.paradigm, pool.setup): pool for pool in found if pool.variant is None and pool.paradigm != TEACHER}
    pairs = [
        (own[judged, setup], other)
        for (paradigm, setup), other in own.items()
        if paradigm != judged and (judged, setup) in own
    ]
    pairs += [
        (pool, own[pool.paradigm, pool.setup])
        for pool in found
        if pool.variant is not None and (pool.paradigm, pool.setup) in own
    ]
    sentences = [_sentence(one, other, difference(one, other, emotions)) for one, other in pairs]
    if len(sentences) > 1:
        sentences.append(
            f"These are {len(sentences)} comparisons with intervals of 95 % each, not corrected for their number: one "
            "in twenty would exclude zero by chance."
        )
    return sentences


def _sentence(one: Pool, other: Pool, found: Difference | None) -> str:
    names = " against ".join(title(pool.paradigm, pool.setup, pool.variant) for pool in (one, other))
    if found is None:
        return f"{names}: nothing in common to compare."
    over = f"over {found.seeds} seed{'s' * (found.seeds > 1)} and {found.speakers} speakers"
    points = f"{100 * found.UR:+.1f} points of UR"
    if found.interval is None:
        return f"{names}: {points} {over}; no interval can be given."
    low, high = (100 * bound for bound in found.interval)
    verdict = "better" if low > 0 else "worse" if high < 0 else "not decided: the interval includes zero"
    return f"{names}: {points}, paired 95 % interval {low:+.1f} to {high:+.1f} {over}; {verdict}."
