"""Remove clips with identical audio, within a corpus or across corpora: at most one of them is used.

Otherwise copies could end up in both train and test; and if their labels differ, none of them is reliable.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

ManifestRow = dict[str, Any]


def drop_duplicates(
    rows: list[ManifestRow], first_names: Mapping[str, str] | None = None
) -> tuple[list[ManifestRow], list[tuple[ManifestRow, str]]]:
    """Return the remaining manifest rows, and the removed copies, each with a reason that names another copy.

    Of copies that agree on emotion and speaker the first by id remains; of others none does. Speaker names are compared
    without the corpus, so that one corpus under two names agrees with itself.

    Args:
        rows: the manifest rows.
        first_names: see `lakd_ray.data.speaker_aliases.first_names`.
    """
    names = first_names or {}
    copies: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: str(row["utterance"])):
        copies[row["audio_sha256"]].append(row)
    rejected: dict[str, str] = {}
    for first, *others in copies.values():
        labels = {
            (row["emotion"], names.get(row["speaker"], row["speaker"]).partition(":")[2]) for row in (first, *others)
        }
        if len(labels) == 1:
            rejected |= {
                row["utterance"]: f"has the same audio as {first['utterance']}, which is used instead" for row in others
            }
            continue
        for row in (first, *others):
            other = others[0] if row is first else first
            rejected[row["utterance"]] = (
                f"has the same audio as {other['utterance']}, but different labels ({_format_labels(row)}, there "
                f"{_format_labels(other)}), and which one is correct is unknown"
            )
    remaining = [row for row in rows if row["utterance"] not in rejected]
    return remaining, [(row, rejected[row["utterance"]]) for row in rows if row["utterance"] in rejected]


def _format_labels(row: ManifestRow) -> str:
    return f"{row['emotion']} by {row['speaker']}"
