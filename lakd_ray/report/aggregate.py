"""Aggregation of predictions over folds and seeds, and the result rows computed from them.

Each test utterance weighs one per seed. A corpus with fewer folds than others repeats its folds, so several models of a
setting predict an utterance: their n predictions weigh 1/n each, and counts are fractions. Scores are means over seeds;
their intervals are bootstrap intervals over speakers and seeds, or over speakers only for a single seed.

Two scores summarize the languages. In the mean over languages each language weighs the same: this is the measure by
which epochs, trials and students are selected on dev, so it is the headline. The pooled score is of all utterances
together: a language weighs as much as it has utterances.

Shapes: A seeds, S speakers, L languages, N predictions, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from lakd_ray import metrics
from lakd_ray.labels import MEAN_OVER_LANGUAGES, POOLED
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


def build_rows(aggregate: SeedAggregate, languages: Sequence[str], emotions: Sequence[str]) -> list[ResultRow]:
    """Return a row per language, those of `languages` first, then their mean, then one for all utterances."""
    present = {str(code) for model in aggregate.by_seed.values() for code in np.unique(model.language_N)}
    order = [*(code for code in languages if code in present), *sorted(present - set(languages))]
    rows = [_build_row(aggregate.select_languages([code]), code, emotions) for code in order]
    return [*rows, _mean_row(aggregate, rows), _build_row(aggregate, POOLED, emotions)]


def _mean_row(aggregate: SeedAggregate, rows: Sequence[ResultRow]) -> ResultRow:
    """Return the mean of the rows of several languages; every score that is a float is averaged."""
    shared = restrict_to_shared_utterances([aggregate])
    draws = metrics.bootstrap_over_seeds(confusions_by_speaker_and_language(shared)[0]) if shared else None
    columns: dict[str, list[Any]] = {key: [dict(row)[key] for row in rows] for key in rows[0]}
    means = {key: mean(values) for key, values in columns.items() if isinstance(values[0], float)}
    recalls = {name: [row["recall"][name] for row in rows] for name in rows[0]["recall"]}
    changes = {
        "language": MEAN_OVER_LANGUAGES,
        "n": sum(columns["n"]),
        "UR_interval": None if draws is None else list(metrics.percentile_interval(draws[0])),
        "recall": {name: _mean_ignoring_none(values) for name, values in recalls.items()},
        "confusion": None,
    }
    return cast(ResultRow, rows[0] | means | changes)


def _build_row(aggregate: SeedAggregate, language: str, emotions: Sequence[str]) -> ResultRow:
    models = aggregate.by_seed.values()
    scores = [
        metrics.compute_scores(model.probabilities_NC, model.labels_N, emotions, model.weight_N) for model in models
    ]
    shared = restrict_to_shared_utterances([aggregate])
    draws = metrics.bootstrap_over_seeds(confusions_by_speaker(shared)[0]) if shared else None
    recalls = {emotion: [score.recall[emotion] for score in scores] for emotion in emotions}
    return ResultRow(
        paradigm=aggregate.paradigm,
        setup=aggregate.setup,
        variant=aggregate.variant,
        undisclosed_models=", ".join(sorted({model.undisclosed_models for model in models} - {""})),
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
        confusion=np.sum([score.confusion for score in scores], axis=0).round(6).tolist(),
    )


def _mean_ignoring_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def restrict_to_shared_utterances(aggregates: Sequence[SeedAggregate]) -> list[SeedAggregate] | None:
    """Select the predictions that all seeds of all aggregates have: the same utterances by models of the same folds.

    Some are not shared where runs are missing.

    Returns:
        The restricted aggregates; None without shared utterances.
    """
    models = [model for aggregate in aggregates for model in aggregate.by_seed.values()]
    shared = set.intersection(*(set(_prediction_keys(model)) for model in models)) if models else set()
    if not shared:
        return None
    return [
        replace(aggregate, by_seed={seed: _select_keys(model, shared) for seed, model in aggregate.by_seed.items()})
        for aggregate in aggregates
    ]


def _prediction_keys(predictions: Predictions) -> list[tuple[str, int]]:
    return list(zip(predictions.utterance_N.tolist(), predictions.fold_N.tolist(), strict=True))


def _select_keys(predictions: Predictions, keys: set[tuple[str, int]]) -> Predictions:
    return predictions.take(np.flatnonzero([key in keys for key in _prediction_keys(predictions)]))


def confusions_by_speaker(aggregates: Sequence[SeedAggregate]) -> list[npt.NDArray[np.float64]]:
    """Return the confusion matrices of each aggregate by seed and speaker, shape [A, S, C, C].

    The speaker axis is the same in all of them. Counts are sums of the weights of predictions.
    """
    return [confusion_ASLCC.sum(axis=2) for confusion_ASLCC in confusions_by_speaker_and_language(aggregates)]


def confusions_by_speaker_and_language(aggregates: Sequence[SeedAggregate]) -> list[npt.NDArray[np.float64]]:
    """Return the confusion matrices of each aggregate by seed, speaker and language, shape [A, S, L, C, C].

    The axes of speakers and languages are the same in all of them. UR of the sum over the language axis is the pooled
    UR; `metrics.mean_recall_over_languages` of the sum over the speaker axis is the mean over languages.
    """
    models = [model for aggregate in aggregates for model in aggregate.by_seed.values()]
    speakers, languages = (
        sorted({str(name) for model in models for name in np.unique(getattr(model, axis))})
        for axis in ("speaker_N", "language_N")
    )
    return [
        np.stack(
            [
                np.stack([_speaker_confusions(model, code, speakers) for code in languages], axis=1)
                for model in aggregate.by_seed.values()
            ]
        )
        for aggregate in aggregates
    ]


def _speaker_confusions(predictions: Predictions, language: str, speakers: Sequence[str]) -> npt.NDArray[np.float64]:
    part = predictions.select_languages([language])
    return metrics.speaker_confusions(
        part.probabilities_NC, part.labels_N, part.speaker_N.tolist(), speakers, part.weight_N
    )
