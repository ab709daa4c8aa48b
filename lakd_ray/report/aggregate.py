"""Aggregation of predictions over folds and seeds, and the result rows computed from them.

Each test utterance weighs one per seed. A corpus with fewer folds than others repeats its folds, so several models of a
setting predict an utterance: their n predictions weigh 1/n each, and counts are fractions. Scores are means over seeds;
their intervals are over clusters and seeds, or over clusters only for a single seed (`lakd_ray.statistics`). A cluster
is a speaker, or a session in which speakers talk to each other; the language in which it has most utterances is its
stratum.

Two scores summarize the languages. In the mean over languages each language weighs the same: this is the measure by
which epochs, trials and students are selected on dev, so it is the headline. The pooled score is of all utterances
together: a language weighs as much as it has utterances.

Shapes: A seeds, S clusters, L languages, N predictions, C classes.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from lakd_ray import metrics
from lakd_ray.labels import MEAN_OVER_LANGUAGES, POOLED
from lakd_ray.report.predictions import TEACHER, Predictions, concatenate_predictions, join_names
from lakd_ray.report.result_table import ResultRow
from lakd_ray.statistics import Jackknife, interval, jackknife

Score = Callable[[metrics.CountArray], metrics.FloatArray]  # of confusion matrices [..., L, C, C]


@dataclass(frozen=True)
class SeedAggregate:
    """Predictions of one model, or of one student setting over all folds, by seed."""

    paradigm: str
    setup: str
    variant: str | None
    by_seed: dict[int, Predictions]
    model: str
    """Run id; the setting's name where several folds or seeds are pooled."""
    fold: int | None = None
    """None if several folds or seeds are pooled."""
    seed: int | None = None

    @property
    def is_student(self) -> bool:
        """Whether it is a student, not a teacher."""
        return self.paradigm != TEACHER

    @property
    def unit(self) -> str:
        """What a cluster of its utterances is: a speaker, a session, or either."""
        speakers = {bool((model.cluster_N == model.speaker_N).all()) for model in self.by_seed.values()}
        sessions = {bool((model.cluster_N != model.speaker_N).all()) for model in self.by_seed.values()}
        return "speaker" if speakers == {True} else "session" if sessions == {True} else "speaker or session"

    def select_languages(self, languages: Sequence[str]) -> "SeedAggregate":
        """Return the part with utterances in the given languages, without seeds that have none."""
        parts = {seed: model.select_languages(languages) for seed, model in self.by_seed.items()}
        return replace(self, by_seed={seed: part for seed, part in parts.items() if len(part.labels_N)})

    @property
    def languages(self) -> set[str]:
        """Languages of its utterances, in any seed."""
        return set().union(*(model.languages for model in self.by_seed.values()))

    def select_seeds(self, languages: Collection[str]) -> "SeedAggregate":
        """Return the part with the seeds that have utterances in all of the given languages."""
        complete = {seed: model for seed, model in self.by_seed.items() if model.languages >= set(languages)}
        return replace(self, by_seed=complete)


def single_model(predictions: Predictions) -> SeedAggregate:
    """Return the aggregate that consists of one model in one cell."""
    return SeedAggregate(
        paradigm=predictions.paradigm,
        setup=predictions.setup,
        variant=predictions.variant,
        by_seed={predictions.seed: predictions},
        model=predictions.model,
        fold=predictions.fold,
        seed=predictions.seed,
    )


def aggregate_seeds(predictions: Sequence[Predictions]) -> list[SeedAggregate]:
    """Group predictions by paradigm, set-up and variant: teachers first, then students by set-up and variant.

    A model of some languages counts only in these: the monolingual models of a seed are scored together.
    """
    groups: dict[tuple[str, str, str | None], dict[int, list[Predictions]]] = {}
    for model in predictions:
        key = (model.paradigm, model.setup, model.variant)
        own = model.select_languages(model.trained_languages) if model.trained_languages else model
        groups.setdefault(key, {}).setdefault(model.seed, []).append(own)
    cells = {(model.fold, model.seed) for model in predictions}
    aggregates = []
    for (paradigm, setup, variant), by_seed in groups.items():
        fold, seed = next(iter(cells)) if len(cells) == 1 else (None, None)
        runs = ", ".join(model.model for members in by_seed.values() for model in members)
        name = runs if len(cells) == 1 else "-".join(filter(None, [paradigm, setup, variant]))
        all_folds = {number: concatenate_predictions(by_seed[number]) for number in sorted(by_seed)}
        aggregates.append(SeedAggregate(paradigm, setup, variant, all_folds, name, fold, seed))
    return sorted(aggregates, key=lambda aggregate: (aggregate.is_student, aggregate.setup, aggregate.variant or ""))


def build_rows(
    aggregate: SeedAggregate,
    languages: Sequence[str],
    emotions: Sequence[str],
    *,
    summarized: Collection[str] = (),
) -> list[ResultRow]:
    """Return a row per language, those of `languages` first, then their mean, then one for all utterances.

    The last two are over the seeds that have all of the aggregate's languages: monolingual runs may be missing. Without
    such a seed, or without one of the languages in `summarized`, the aggregate has no such rows.
    """
    present = aggregate.languages
    order = [*(code for code in languages if code in present), *sorted(present - set(languages))]
    rows = [_build_row(aggregate.select_languages([code]), code, emotions) for code in order]
    complete = aggregate.select_seeds(present | set(summarized))
    if not complete.by_seed:
        return rows
    summed = rows
    if len(complete.by_seed) < len(aggregate.by_seed):
        summed = [_build_row(complete.select_languages([code]), code, emotions) for code in order]
    return [*rows, _mean_row(complete, summed), _build_row(complete, POOLED, emotions)]


def _mean_row(aggregate: SeedAggregate, rows: Sequence[ResultRow]) -> ResultRow:
    """Return the mean of the rows of several languages; every score that is a float is averaged."""
    columns: dict[str, list[Any]] = {key: [dict(row)[key] for row in rows] for key in rows[0]}
    means = {key: mean(values) for key, values in columns.items() if isinstance(values[0], float)}
    recalls = {name: [row["recall"][name] for row in rows] for name in rows[0]["recall"]}
    scores = metrics.mean_recall_over_languages, metrics.mean_accuracy_over_languages
    intervals = _intervals(aggregate, (means["UR"], means["WR"]), scores)
    changes = {
        "language": MEAN_OVER_LANGUAGES,
        "n": sum(columns["n"]),
        "UR_interval": intervals[0],
        "WR_interval": intervals[1],
        "recall": {name: _mean_ignoring_none(values) for name, values in recalls.items()},
        "confusion": None,
    }
    return cast(ResultRow, rows[0] | means | changes)


def _build_row(aggregate: SeedAggregate, language: str, emotions: Sequence[str]) -> ResultRow:
    models = aggregate.by_seed.values()
    scores = [
        metrics.compute_scores(model.probabilities_NC, model.labels_N, emotions, model.weight_N) for model in models
    ]
    UR, WR = mean(score.UR for score in scores), mean(score.WR for score in scores)
    intervals = _intervals(aggregate, (UR, WR), (_pooled_recall, _pooled_accuracy))
    recalls = {emotion: [score.recall[emotion] for score in scores] for emotion in emotions}
    return ResultRow(
        paradigm=aggregate.paradigm,
        setup=aggregate.setup,
        variant=aggregate.variant,
        undisclosed_models=join_names(model.undisclosed_models for model in models),
        settings_selected_on=join_names(model.settings_selected_on for model in models),
        model=aggregate.model,
        language=language,
        fold=aggregate.fold,
        seed=aggregate.seed,
        n=max(score.n for score in scores),
        UR=UR,
        UR_interval=intervals[0],
        WR=WR,
        WR_interval=intervals[1],
        macro_f1=mean(score.macro_f1 for score in scores),
        ece=mean(score.ece for score in scores),
        recall={emotion: _mean_ignoring_none(values) for emotion, values in recalls.items()},
        confusion=np.mean([score.confusion for score in scores], axis=0).round(6).tolist(),
    )


def _pooled_recall(confusion_XLCC: metrics.CountArray) -> metrics.FloatArray:
    return metrics.unweighted_recall(confusion_XLCC.sum(axis=-3))


def _pooled_accuracy(confusion_XLCC: metrics.CountArray) -> metrics.FloatArray:
    return metrics.accuracy(confusion_XLCC.sum(axis=-3))


def _intervals(
    aggregate: SeedAggregate, estimates: Sequence[float], scores: Sequence[Score]
) -> list[list[float] | None]:
    """Return the 95 % intervals of several scores; None where a language has a single cluster, or nothing varies."""
    shared = restrict_to_shared_utterances([aggregate])
    if shared is None:
        return [None for _ in scores]
    (confusion_ASLCC,) = confusions_by_cluster(shared)
    bounds = []
    for estimate, score in zip(estimates, scores, strict=True):
        model = jackknife_over_clusters(confusion_ASLCC, score)
        bounds.append(None if model is None else interval(estimate, model.standard_errors(), (0, 1)))
    return [None if pair is None else list(pair) for pair in bounds]


def jackknife_over_clusters(confusion_ASLCC: metrics.FloatArray, score: Score) -> Jackknife | None:
    """Return the jackknife of a score of confusion matrices by language; None where a language has a single cluster.

    That includes a cluster with more utterances in a different language: without it, a mean over languages would be
    over fewer languages.
    """
    counts_SL = confusion_ASLCC.sum(axis=(0, 3, 4))
    if ((counts_SL > 0).sum(axis=0) < 2).any():
        return None
    strata = counts_SL.argmax(axis=1).astype(str).tolist()
    return jackknife(confusion_ASLCC, score, strata)


def _mean_ignoring_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def restrict_to_shared_utterances(
    aggregates: Sequence[SeedAggregate], languages: Collection[str] = ()
) -> list[SeedAggregate] | None:
    """Select the predictions that all seeds of all aggregates have: the same utterances by models of the same folds.

    Some are not shared where runs are missing. A mean over languages is comparable only over the same languages, so
    seeds that lack a language are omitted.

    Args:
        aggregates: the aggregates to compare.
        languages: languages that are required in addition to those of the aggregates.

    Returns:
        The restricted aggregates; None without shared utterances in every language.
    """
    required = set(languages).union(*(aggregate.languages for aggregate in aggregates))
    complete = [aggregate.select_seeds(required) for aggregate in aggregates]
    seeds = set.intersection(*(set(aggregate.by_seed) for aggregate in complete))
    if not seeds:
        return None
    models = [aggregate.by_seed[seed] for aggregate in complete for seed in seeds]
    shared = set.intersection(*(set(_prediction_keys(model)) for model in models))
    restricted = [
        replace(aggregate, by_seed={seed: _select_keys(aggregate.by_seed[seed], shared) for seed in sorted(seeds)})
        for aggregate in complete
    ]
    return restricted if restricted[0].languages == required else None


def _prediction_keys(predictions: Predictions) -> list[tuple[str, int]]:
    return list(zip(predictions.utterance_N.tolist(), predictions.fold_N.tolist(), strict=True))


def _select_keys(predictions: Predictions, keys: set[tuple[str, int]]) -> Predictions:
    return predictions.take(np.flatnonzero([key in keys for key in _prediction_keys(predictions)]))


def confusions_by_cluster(aggregates: Sequence[SeedAggregate]) -> list[npt.NDArray[np.float64]]:
    """Return the confusion matrices of each aggregate by seed, cluster and language, shape [A, S, L, C, C].

    The axes of clusters and languages are the same in all of them. UR of the sum over the language axis is the pooled
    UR; `metrics.mean_recall_over_languages` of the sum over the cluster axis is the mean over languages.
    """
    models = [model for aggregate in aggregates for model in aggregate.by_seed.values()]
    clusters, languages = (
        sorted({str(name) for model in models for name in np.unique(getattr(model, axis))})
        for axis in ("cluster_N", "language_N")
    )
    return [
        np.stack(
            [
                np.stack([_cluster_confusions(model, code, clusters) for code in languages], axis=1)
                for model in aggregate.by_seed.values()
            ]
        )
        for aggregate in aggregates
    ]


def _cluster_confusions(predictions: Predictions, language: str, clusters: Sequence[str]) -> npt.NDArray[np.float64]:
    part = predictions.select_languages([language])
    return metrics.cluster_confusions(
        part.probabilities_NC, part.labels_N, part.cluster_N.tolist(), clusters, part.weight_N
    )
