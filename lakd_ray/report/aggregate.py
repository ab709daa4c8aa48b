"""Aggregation of predictions over folds and seeds, and the result rows computed from them.

Each test utterance counts once per seed. Scores are means over seeds; their intervals are bootstrap intervals over
speakers and seeds, or over speakers only for a single seed.

Shapes: A seeds, S speakers, N utterances, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np
import numpy.typing as npt

from lakd_ray import metrics
from lakd_ray.labels import POOLED
from lakd_ray.report.predictions import TEACHER, Predictions, concatenate_predictions
from lakd_ray.report.result_table import ResultRow


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

    def select_languages(self, languages: Sequence[str]) -> "SeedAggregate":
        """Return the part with utterances in the given languages."""
        return replace(self, by_seed={seed: model.select_languages(languages) for seed, model in self.by_seed.items()})


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
    Corpora with fewer folds than others repeat their folds; an utterance that is in several test folds counts in the
    first one.
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
        first_folds = {number: _select_first_fold(by_seed[number]) for number in sorted(by_seed)}
        aggregates.append(SeedAggregate(paradigm, setup, variant, first_folds, name, fold, seed))
    return sorted(aggregates, key=lambda aggregate: (aggregate.is_student, aggregate.setup, aggregate.variant or ""))


def _select_first_fold(predictions: Sequence[Predictions]) -> Predictions:
    all_folds = concatenate_predictions(sorted(predictions, key=lambda model: model.fold))
    _, first = np.unique(all_folds.utterance_N, return_index=True)
    return all_folds.take(first)


def build_rows(aggregate: SeedAggregate, languages: Sequence[str], emotions: Sequence[str]) -> list[ResultRow]:
    """Return a row per language, those of `languages` first, then one for all utterances."""
    present = {str(code) for model in aggregate.by_seed.values() for code in np.unique(model.language_N)}
    order = [*(code for code in languages if code in present), *sorted(present - set(languages))]
    parts = [(code, aggregate.select_languages([code])) for code in order]
    return [_build_row(part, code, emotions) for code, part in [*parts, (POOLED, aggregate)]]


def _build_row(aggregate: SeedAggregate, language: str, emotions: Sequence[str]) -> ResultRow:
    models = aggregate.by_seed.values()
    scores = [metrics.compute_scores(model.probabilities_NC, model.labels_N, emotions) for model in models]
    shared = restrict_to_shared_utterances([aggregate])
    draws = metrics.bootstrap_over_seeds(confusions_by_speaker(shared)[0]) if shared else None
    recalls = {emotion: [score.recall[emotion] for score in scores] for emotion in emotions}
    return ResultRow(
        paradigm=aggregate.paradigm,
        setup=aggregate.setup,
        variant=aggregate.variant,
        undisclosed_teachers=", ".join(sorted({model.undisclosed_teachers for model in models} - {""})),
        model=aggregate.model,
        language=language,
        fold=aggregate.fold,
        seed=aggregate.seed,
        n=max(score.n for score in scores),
        UR=mean(score.UR for score in scores),
        UR_interval=None if draws is None else list(metrics.percentile_interval(draws[0])),
        WR=mean(score.WR for score in scores),
        macro_f1=mean(score.macro_f1 for score in scores),
        ece=mean(score.ece for score in scores),
        recall={emotion: _mean_ignoring_none(values) for emotion, values in recalls.items()},
        confusion=np.sum([score.confusion for score in scores], axis=0).tolist(),
    )


def _mean_ignoring_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def restrict_to_shared_utterances(aggregates: Sequence[SeedAggregate]) -> list[SeedAggregate] | None:
    """Select the utterances that all seeds of all aggregates have; None without shared ones.

    Some utterances are not shared where runs are missing.
    """
    utterances = [set(model.utterance_N.tolist()) for aggregate in aggregates for model in aggregate.by_seed.values()]
    shared = np.array(sorted(set.intersection(*utterances))) if utterances else np.array([])
    if not len(shared):
        return None
    return [
        replace(
            aggregate, by_seed={seed: _select_utterances(model, shared) for seed, model in aggregate.by_seed.items()}
        )
        for aggregate in aggregates
    ]


def _select_utterances(predictions: Predictions, utterances: npt.NDArray[np.str_]) -> Predictions:
    order_N = np.argsort(predictions.utterance_N)
    return predictions.take(order_N[np.searchsorted(predictions.utterance_N[order_N], utterances)])


def confusions_by_speaker(aggregates: Sequence[SeedAggregate]) -> list[npt.NDArray[np.int64]]:
    """Return the confusion matrices of each aggregate by seed and speaker, shape [A, S, C, C].

    The speaker axis is the same in all of them.
    """
    names = sorted(
        {str(name) for aggregate in aggregates for model in aggregate.by_seed.values() for name in model.speaker_N}
    )
    return [
        np.stack(
            [
                metrics.speaker_confusions(model.probabilities_NC, model.labels_N, model.speaker_N.tolist(), names)
                for model in aggregate.by_seed.values()
            ]
        )
        for aggregate in aggregates
    ]
