"""Reject splits that would invalidate the results."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakd_ray.config import Experiment
from lakd_ray.data.category_column import CategoryColumn
from lakd_ray.data.splits import EXCLUDED, SPLIT_NAMES, TRAIN, SplitNames, format_list
from lakd_ray.errors import SplitError
from lakd_ray.labels import SPLITS

_SplitNumbers = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)


def check_splits(manifest: pa.Table, splits: SplitNames, config: Experiment) -> None:
    """Reject splits that would invalidate the results.

    Raises:
        SplitError: a speaker or a recording is in two splits, or a language lacks a split or a class in train.
    """
    numbers: Mapping[str, int] = {name: number for number, name in enumerate(SPLIT_NAMES.tolist())}
    names, inverse_N = np.unique(splits, return_inverse=True)
    split_N = np.array([numbers[name] for name in names.tolist()], np.int64)[inverse_N]
    _check_speakers(CategoryColumn.from_table(manifest, "speaker"), split_N, config)
    _check_recordings(manifest, split_N, config)
    language, emotion = CategoryColumn.from_table(manifest, "language"), CategoryColumn.from_table(manifest, "emotion")
    for code in config.languages:
        selected_N = language.isin([code])
        counts = {name: int((selected_N & (split_N == numbers[name])).sum()) for name in SPLITS}
        if empty := [name for name in SPLITS if not counts[name]]:
            counts_text = ", ".join(f"{count} in {name}" for name, count in counts.items())
            raise SplitError(
                f"language {code} has no utterances in {', '.join(empty)}: found {counts_text}. Every language needs "
                "train, dev and test; change the `split` of its corpora, or remove it from `languages`."
            )
        present = emotion.unique_values(np.flatnonzero(selected_N & (split_N == TRAIN)))
        if missing := [name for name in config.emotions if name not in present]:
            raise SplitError(
                f"language {code} has no {', '.join(missing)} in train: found {', '.join(present)} in "
                f"{counts['train']} utterances. Change the `split` of its corpora, map its emotion names with "
                "`emotion_map`, or remove the class from the experiment's `emotions`."
            )


def _check_speakers(speaker: CategoryColumn, split_N: _SplitNumbers, config: Experiment) -> None:
    if lines := _find_shared(speaker, split_N):
        raise SplitError(
            _format_lines(lines, "speaker", "Choose a scheme that separates speakers, or correct the corpus's splits.")
        )
    if lines := _find_shared(_dataset_speakers(speaker, config), split_N, speaker, "are one speaker of a dataset"):
        solution = (
            "List the names of each speaker in `speaker_aliases`, or if the corpora have different speakers, name a "
            "different `dataset` for each."
        )
        raise SplitError(_format_lines(lines, "speaker", solution))


def _check_recordings(manifest: pa.Table, split_N: _SplitNumbers, config: Experiment) -> None:
    utterance = CategoryColumn.from_table(manifest, "utterance")
    solution = "Delete the copies, or list the names of their speaker in `speaker_aliases`."
    audio = CategoryColumn.from_table(manifest, "audio_sha256")
    if lines := _find_shared(audio, split_N, utterance, "have the same audio"):
        raise SplitError(_format_lines(lines, "recording", solution))
    if "acoustic_fingerprint" not in manifest.column_names or config.audio.acoustic_duplicates == "off":
        return
    fingerprint = CategoryColumn.from_table(manifest, "acoustic_fingerprint")
    if lines := _find_shared(fingerprint, split_N, utterance, "have the same acoustic fingerprint"):
        message = _format_lines(lines, "recording", f"{solution} `audio.acoustic_duplicates: warn` accepts them.")
        if config.audio.acoustic_duplicates == "error":
            raise SplitError(message)
        logger.warning(message)


def _dataset_speakers(speaker: CategoryColumn, config: Experiment) -> CategoryColumn:
    """Return the names of speakers in the public datasets of their corpora; null for other corpora."""
    datasets = {corpus.name: corpus.public_dataset for corpus in config.corpora}
    parts = [name.partition(":") for name in speaker.values]
    names = [f"{datasets[corpus]}:{name}" if datasets.get(corpus) else "" for corpus, _, name in parts]
    values, codes = np.unique(np.array(["", *names]), return_inverse=True)
    return CategoryColumn(np.append(codes[1:], 0)[speaker.codes] - 1, values[1:].tolist())


def _find_shared(
    column: CategoryColumn, split_N: _SplitNumbers, names: CategoryColumn | None = None, relation: str = ""
) -> list[str]:
    """Return a line for each value that is in more than one of train, dev and test.

    Args:
        column: the values; rows without a value are not compared.
        split_N: split of each row.
        names: column whose values in the affected rows are listed, in place of the shared value.
        relation: what these rows have in common.
    """
    seen = np.zeros((len(column.values) + 1, len(SPLIT_NAMES)), np.bool_)
    seen[column.codes, split_N] = True
    lines = []
    for code in np.flatnonzero(seen[:-1, TRAIN:].sum(axis=1) > 1).tolist():
        split_names = " and ".join(name for name, is_in in zip(SPLITS, seen[code, TRAIN:], strict=True) if is_in)
        if names is None:
            lines.append(f"{column.values[code]} is in {split_names}")
        else:
            listed = names.unique_values(np.flatnonzero((column.codes == code) & (split_N != EXCLUDED)))
            lines.append(f"{format_list(listed)} {relation} and are in {split_names}")
    return sorted(lines)


def _format_lines(lines: Sequence[str], item_name: str, solution: str) -> str:
    count = f"{len(lines)} {item_name}{'s are' if len(lines) > 1 else ' is'}"
    return "\n  ".join([f"{count} in more than one of train, dev and test:", *lines[:5]]) + f"\n{solution}"
