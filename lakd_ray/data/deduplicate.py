"""Clips with the same audio, within a corpus or across corpora: at most one of them can be used.

Two copies could come to lie in train and test; and where their labels differ, none can be believed.
"""

from collections import defaultdict
from typing import Any

ManifestRow = dict[str, Any]


def drop_duplicates(rows: list[ManifestRow]) -> tuple[list[ManifestRow], list[tuple[ManifestRow, str]]]:
    """Manifest rows that stay, and those that are copies, each with a reason that names another one.

    Copies that agree on emotion and speaker: the first by id stays. Copies that do not: none stays. Speakers are
    compared as their corpora name them, so one corpus under two names agrees with itself.
    """
    copies: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: str(row["utterance"])):
        copies[row["audio_sha256"]].append(row)
    refused: dict[str, str] = {}
    for first, *others in copies.values():
        labels = {(row["emotion"], row["speaker"].partition(":")[2]) for row in (first, *others)}
        if len(labels) == 1:
            refused |= {
                row["utterance"]: f"has the same audio as {first['utterance']}, which is kept" for row in others
            }
            continue
        for row in (first, *others):
            other = others[0] if row is first else first
            refused[row["utterance"]] = (
                f"has the same audio as {other['utterance']}, but other labels: {_format_labels(row)} here and "
                f"{_format_labels(other)} there; which is right is not known"
            )
    kept = [row for row in rows if row["utterance"] not in refused]
    return kept, [(row, refused[row["utterance"]]) for row in rows if row["utterance"] in refused]


def _format_labels(row: ManifestRow) -> str:
    return f"{row['emotion']} by {row['speaker']}"
