"""Caveats of the results, in sentences: what a reader must know before quoting a number."""

from collections.abc import Sequence

import numpy as np

from lakd_ray.config import Experiment
from lakd_ray.data.class_coverage import MissingEmotions, describe_missing, find_missing_emotions
from lakd_ray.models.known_pretrained import KNOWN_MODELS
from lakd_ray.report.predictions import Predictions, join_names
from lakd_ray.report.result_table import format_title
from lakd_ray.runs.graph import RunGraph
from lakd_ray.runs.state import RunState

_PUBLISHED_RESULTS = (
    "Published by Bijoy et al. (Interspeech 2025) for their multi-teacher student: WR 72.9 % on English (IEMOCAP) and "
    "UR 63.4 % on Finnish (FESC). Their division into dev and test and their seeds are different."
)


def synthetic_corpus_warnings(config: Experiment) -> list[str]:
    """Return a warning for each corpus of synthetic speech; warnings are at the top of the report."""
    return [
        f"Corpus {corpus.name} is synthetic: its speech comes from a synthesizer, not from human speakers. Its numbers "
        "show that the pipeline works; they are no evidence about human emotion."
        for corpus in config.corpora
        if corpus.is_synthetic
    ]


def list_caveats(
    graph: RunGraph, cells: Sequence[RunGraph], predictions: Sequence[Predictions], failed_runs: Sequence[str] = ()
) -> list[str]:
    """Return all caveats that apply, except the warnings about synthetic corpora.

    Args:
        graph: runs of the experiment's own fold and seed.
        cells: runs of all cells.
        predictions: those of all cells.
        failed_runs: ids of runs that failed.
    """
    return [
        *_undisclosed_model_caveat(predictions),
        *_selected_settings_caveat(graph.config, predictions),
        describe_intervals(predictions),
        *_shared_sentence_caveat(predictions),
        *_missing_emotion_caveat(graph.config, predictions),
        *_dev_missing_emotion_caveat(cells),
        *_single_fold_or_seed_caveat(predictions),
        *_shared_run_caveat(graph),
        *_published_results_note(graph.config),
        *_failed_runs_note(failed_runs),
    ]


def _undisclosed_model_caveat(predictions: Sequence[Predictions]) -> list[str]:
    joined = join_names(model.undisclosed_models for model in predictions)
    if not joined:
        return []
    names = joined.split(", ")
    reasons = {name: KNOWN_MODELS[name].undisclosed for name in names if name in KNOWN_MODELS}
    described = [f"{name} ({reasons[name]})" if reasons.get(name) else name for name in names]
    return [
        f"* started from or distilled from {', '.join(described)}, whose training data is not known: it may include "
        "test speakers, which would make these results optimistic. If it is known, declare it with `trained_on`."
    ]


def _selected_settings_caveat(config: Experiment, predictions: Sequence[Predictions]) -> list[str]:
    marked = [model for model in predictions if model.settings_selected_on]
    if not marked:
        return []
    folds = ", ".join(map(str, sorted({model.fold for model in marked})))
    searches = ", ".join(f"{item.experiment} (fold {item.fold})" for item in config.selected_on) or "a search"
    return [
        f"† the settings were selected by {searches} on dev speakers who are test speakers in fold {folds} "
        f"({join_names(model.settings_selected_on for model in marked)}): these results are optimistic. Folds without "
        "them are not affected; an unbiased result over all folds needs a search in each fold."
    ]


def describe_intervals(predictions: Sequence[Predictions]) -> str:
    """State over how many test speakers intervals are, and which languages have too few for one."""
    clusters: dict[str, set[str]] = {}
    sessions: set[str] = set()
    for model in predictions:
        for language in np.unique(model.language_N).tolist():
            part = model.select_languages([language])
            clusters.setdefault(language, set()).update(part.cluster_N.tolist())
            if (part.cluster_N != part.speaker_N).any():
                sessions.add(language)
    counts = ", ".join(
        f"{language} {len(names)}{' sessions' * (language in sessions)}" for language, names in sorted(clusters.items())
    )
    seeds = len({model.seed for model in predictions})
    crossed = f" and {seeds} seeds" if seeds > 1 else ""
    sentence = f"Intervals are 95 % t intervals of a jackknife over test speakers ({counts}){crossed}."
    if sessions:
        sentence += " The speakers of a session talk to each other, so a session counts as one."
    single = [language for language, names in sorted(clusters.items()) if len(names) == 1]
    if single:
        others = ", nor over all languages" if len(clusters) > 1 else ""
        sentence += f" There is no interval in {', '.join(single)}{others}: one shows no variation."
    return sentence


def _shared_sentence_caveat(predictions: Sequence[Predictions]) -> list[str]:
    """State how many test utterances have a sentence that is also in train."""
    in_train: dict[str, dict[str, bool]] = {}  # by language and utterance; in train of any fold
    for model in predictions:
        columns = (model.language_N, model.utterance_N, model.sentence_in_train_N)
        for language, utterance, shared in zip(*(column.tolist() for column in columns), strict=True):
            by_utterance = in_train.setdefault(language, {})
            by_utterance[utterance] = bool(shared) or by_utterance.get(utterance, False)
    counts = [
        f"{language} {sum(by_utterance.values())} of {len(by_utterance)}"
        for language, by_utterance in in_train.items()
        if any(by_utterance.values())
    ]
    if not counts:
        return []
    return [
        f"Test utterances whose sentence is also in train, by other speakers: {', '.join(counts)}. The speakers are "
        "new to the models, the words are not."
    ]


def _missing_emotion_caveat(config: Experiment, predictions: Sequence[Predictions]) -> list[str]:
    """State which classes a language lacks in test, by fold."""
    names = np.asarray(config.emotions)
    missing: dict[int, MissingEmotions] = {}
    for model in predictions:
        found = find_missing_emotions(names[model.labels_N], model.language_N, config)
        missing.setdefault(model.fold, {}).update(found)
    return _capitalize(describe_missing("test", missing, config))


def _dev_missing_emotion_caveat(cells: Sequence[RunGraph]) -> list[str]:
    """State which classes a language lacks in dev, by fold, as the runs recorded it: dev selects the students."""
    missing: dict[int, MissingEmotions] = {}
    for cell in cells:
        for run in cell.evaluated:
            for epoch in RunState.read(run.folder(cell.config)).metrics[:1]:
                missing.setdefault(cell.config.fold, {}).update(epoch.get("dev_missing_emotions", {}))
    return _capitalize(describe_missing("dev", missing, cells[0].config))


def _capitalize(sentences: Sequence[str]) -> list[str]:
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences]


def _single_fold_or_seed_caveat(predictions: Sequence[Predictions]) -> list[str]:
    folds, seeds = ({getattr(model, name) for model in predictions} for name in ("fold", "seed"))
    sentences = []
    if len(seeds) == 1:
        sentences.append(
            f"One seed ({seeds.pop()}): the intervals cover the variation over test speakers, not that over training "
            "runs, which may be as large as a difference between settings."
        )
    if len(folds) == 1:
        sentences.append(f"One fold ({folds.pop()}): different folds have different test speakers and training data.")
    return sentences


def _shared_run_caveat(graph: RunGraph) -> list[str]:
    shared: dict[str, list[str]] = {}
    for run in graph.students:
        if run.stage == "teachers":
            shared.setdefault(format_title(run.paradigm, run.setup), []).append(run.id)
    return [
        f"{name} is the teacher run {', '.join(runs)}: both have the same training settings, so it is trained once and "
        "listed as a student."
        for name, runs in shared.items()
    ]


def _published_results_note(config: Experiment) -> list[str]:
    return [_PUBLISHED_RESULTS] if {"iemocap", "fesc"} & {corpus.importer for corpus in config.corpora} else []


def _failed_runs_note(failed_runs: Sequence[str]) -> list[str]:
    return [f"Runs that failed and are missing from the tables: {', '.join(failed_runs)}."] if failed_runs else []
