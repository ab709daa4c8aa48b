"""Find the classes that a language lacks in dev or test, where UR is the mean over the classes present."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakd_ray.config import Experiment
from lakd_ray.data import splits
from lakd_ray.data.speaker_aliases import merge_speakers
from lakd_ray.errors import ConfigError, SplitError

_EVALUATED_SPLITS = ("dev", "test")

MissingEmotions = dict[str, list[str]]
"""The emotions that each language lacks, without the languages that lack none."""


def find_missing_emotions(
    emotions_N: npt.NDArray[Any], languages_N: npt.NDArray[Any], config: Experiment
) -> MissingEmotions:
    """Return the emotions that no utterance of a language has, for the languages that have utterances.

    Args:
        emotions_N: name of the emotion of each utterance.
        languages_N: language of each utterance.
        config: the experiment, whose emotions are expected.
    """
    missing = {
        code: [name for name in config.emotions if name not in set(emotions_N[languages_N == code].tolist())]
        for code in config.languages
        if code in set(languages_N.tolist())
    }
    return {code: names for code, names in missing.items() if names}


def describe_splits(manifest: pa.Table, config: Experiment, folds: Iterable[int]) -> list[str]:
    """Return a sentence for every language that lacks classes in dev or test of some folds.

    Folds that cannot be split are omitted: the stages that need them report the error.

    Args:
        manifest: the manifest as the prepare stage writes it, with the names of the corpora.
        config: the experiment.
        folds: the folds to describe.
    """
    manifest = merge_speakers(manifest, config)
    emotions_N, languages_N = (np.asarray(manifest[name].to_pylist(), dtype=str) for name in ("emotion", "language"))
    missing: dict[str, dict[int, MissingEmotions]] = {split: {} for split in _EVALUATED_SPLITS}
    for fold in folds:
        try:
            split_N = splits.assign_splits(manifest, config, fold)
        except SplitError:
            continue
        for split, by_fold in missing.items():
            by_fold[fold] = find_missing_emotions(emotions_N[split_N == split], languages_N[split_N == split], config)
    return [sentence for split, by_fold in missing.items() for sentence in describe_missing(split, by_fold, config)]


def describe_all_splits(manifest: pa.Table, config: Experiment) -> list[str]:
    """Return the sentences of `describe_splits` for all folds of the corpora.

    The list is empty if the folds cannot be counted, or if a name of `speaker_aliases` has only recordings in
    quarantine: the stages that load the manifest report the error.
    """
    try:
        folds = range(splits.count_folds(merge_speakers(manifest, config), config))
        return describe_splits(manifest, config, folds)
    except (SplitError, ConfigError):
        return []


def describe_missing(split: str, missing: Mapping[int, MissingEmotions], config: Experiment) -> list[str]:
    """Return a sentence for every language and set of classes that it lacks in a split.

    Args:
        split: `dev` or `test`.
        missing: what each language lacks, by fold; folds without a gap have empty entries.
        config: the experiment.
    """
    folds: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for fold, by_language in sorted(missing.items()):
        for code, names in by_language.items():
            folds.setdefault((code, tuple(names)), []).append(fold)
    total = len(config.emotions)
    return [
        f"{split} has {total - len(names)} of {total} classes in {code} (no {', '.join(names)})"
        f"{_format_folds(numbers, len(missing))}: UR on {split} in {code} is over the classes present"
        for (code, names), numbers in folds.items()
    ]


def _format_folds(numbers: Sequence[int], total: int) -> str:
    if total == 1:
        return ""
    return f" in fold{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
