"""What the numbers say, and what they cannot say, in plain sentences."""

from collections.abc import Sequence

import numpy as np

from lakd_ray import metrics
from lakd_ray.config import Experiment
from lakd_ray.labels import POOLED
from lakd_ray.report.predictions import Predictions
from lakd_ray.report.rows import ResultRow, format_percent, format_title
from lakd_ray.runs.graph import RunGraph

_MIN_SPEAKERS = 10
_REFERENCE_PARADIGM = "mtkd"  # the paradigm that the others are held against


def describe_best_student(rows: Sequence[ResultRow]) -> str:
    """Names the student with the highest pooled UR."""
    pooled = [row for row in rows if row["language"] == POOLED]
    top = max(pooled, key=lambda row: row["UR"])
    bounds = top["UR_interval"]
    interval = f" (95 % interval {format_percent(bounds[0])} to {format_percent(bounds[1])})" if bounds else ""
    name = format_title(top["paradigm"], top["setup"], top["variant"])
    return (
        f"Best student: {name}, with UR {format_percent(top['UR'])} %{interval} "
        f"and WR {format_percent(top['WR'])} % over all languages."
    )


def compare_paradigms(students: Sequence[Predictions], emotions: Sequence[str]) -> list[str]:
    """Whether FT or KD beats MTKD, one sentence for each pair in the same set-up."""
    return [
        _compare_pair(judged, other, emotions)
        for judged in students
        for other in students
        if judged.paradigm == _REFERENCE_PARADIGM
        and other.paradigm != _REFERENCE_PARADIGM
        and judged.setup == other.setup
    ]


def _compare_pair(reference: Predictions, other: Predictions, emotions: Sequence[str]) -> str:
    """The difference of UR with its paired bootstrap interval: both are resampled by the same speakers."""
    UR = {
        id(one): metrics.compute_scores(one.probabilities_NC, one.labels_N, emotions).UR for one in (reference, other)
    }
    upper, lower = sorted((reference, other), key=lambda one: UR[id(one)], reverse=True)
    names = upper.paradigm.upper(), lower.paradigm.upper()
    points = f"{100 * (UR[id(upper)] - UR[id(lower)]):.1f} points of UR"
    where = f"{reference.setup.capitalize()} students:"
    upper_D, lower_D = (
        metrics.bootstrap_UR(one.probabilities_NC, one.labels_N, one.speaker_N.tolist()) for one in (upper, lower)
    )
    if upper_D is None or lower_D is None or set(upper.speaker_N) != set(lower.speaker_N):
        return f"{where} {names[0]} is {points} above {names[1]}; with these speakers no interval can be given."
    low, high = metrics.percentile_interval(upper_D - lower_D)
    interval = f"paired 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    if low > 0:
        return f"{where} {names[0]} beats {names[1]} by {points} ({interval})."
    return (
        f"{where} {names[0]} is {points} above {names[1]}, but the {interval} includes zero: "
        "these data do not decide between the two."
    )


def caveats(graph: RunGraph, predictions: Sequence[Predictions]) -> list[str]:
    """What a reader must know before quoting a number, beside `synthetic`."""
    return [
        *_undisclosed_teacher_caveat(predictions),
        *_speaker_count_caveat(predictions),
        *_shared_sentence_caveat(predictions),
        *_missing_emotion_caveat(graph.config, predictions),
        *_single_cell_caveat(predictions),
        *_shared_run_caveat(graph),
    ]


def synthetic_corpus_warnings(config: Experiment) -> list[str]:
    """The one thing to know first: a corpus that no person spoke."""
    return [
        f"Corpus {corpus.name} is synthetic: a synthesiser spoke, no person did. "
        "Its numbers show that the pipeline works; they say nothing about human emotion."
        for corpus in config.corpora
        if corpus.is_synthetic
    ]


def _undisclosed_teacher_caveat(predictions: Sequence[Predictions]) -> list[str]:
    names = sorted({one.unknown for one in predictions} - {""})
    if not names:
        return []
    return [
        f"* learned from {', '.join(names)}, of which nobody said what it has heard: test speakers may be among that, "
        "and the numbers of these students too good."
    ]


def _speaker_count_caveat(predictions: Sequence[Predictions]) -> list[str]:
    """How many people the intervals rest on."""
    speakers: dict[str, set[str]] = {}
    for one in predictions:
        for language, speaker in zip(one.language_N.tolist(), one.speaker_N.tolist(), strict=True):
            speakers.setdefault(language, set()).add(speaker)
    counts = ", ".join(f"{language} {len(names)}" for language, names in sorted(speakers.items()))
    few = any(len(names) < _MIN_SPEAKERS for names in speakers.values())
    warning = (
        f" With fewer than {_MIN_SPEAKERS} speakers they are too narrow, with one there is none; "
        "a small difference means little."
    )
    return [f"Intervals are 95 % bootstraps over test speakers ({counts}).{warning if few else ''}"]


def _shared_sentence_caveat(predictions: Sequence[Predictions]) -> list[str]:
    """Where test speakers say what was said in train."""
    shared: dict[str, str] = {}
    for one in predictions:
        for language in np.unique(one.language_N).tolist():
            said = one.sentence_in_train_N[one.language_N == language].tolist()
            if any(said):
                shared[language] = f"{language} {said.count(True)} of {len(said)}"
    if not shared:
        return []
    return [
        f"Test utterances whose sentence is also said in train, by others: {', '.join(shared.values())}. Speakers are "
        "new there, words are not."
    ]


def _missing_emotion_caveat(config: Experiment, predictions: Sequence[Predictions]) -> list[str]:
    absent: dict[str, None] = {}  # a dict keeps order and drops repetitions
    for one in predictions:
        for language in np.unique(one.language_N):
            present = set(one.select_languages([str(language)]).labels_N.tolist())
            missing = [emotion for index, emotion in enumerate(config.emotions) if index not in present]
            if missing:
                absent[f"No test utterance in {language} has {', '.join(missing)}: UR there is over the rest."] = None
    return list(absent)


def _single_cell_caveat(predictions: Sequence[Predictions]) -> list[str]:
    folds, seeds = ({getattr(one, name) for one in predictions} for name in ("fold", "seed"))
    if len(folds) > 1 or len(seeds) > 1:
        return []
    return [
        f"One fold ({folds.pop()}) and one seed ({seeds.pop()}): how much results vary over folds and seeds "
        "is not in the intervals."
    ]


def _shared_run_caveat(graph: RunGraph) -> list[str]:
    taken: dict[str, list[str]] = {}
    for run in graph.students:
        if run.stage == "teachers":
            taken.setdefault(format_title(run.paradigm, run.setup), []).append(run.id)
    return [
        f"{name} is the run {', '.join(runs)}: it is trained exactly as that teacher, so it was trained once and "
        "stands among the students."
        for name, runs in taken.items()
    ]
