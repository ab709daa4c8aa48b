"""Emozionalmente: Italian, 431 crowd-sourced amateur actors, 18 sentences. Labels are in `metadata/samples.csv`."""

from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.items import Clip, Item
from lakd_ray.corpora.label_table import LabelRow, LabelTable

EMOTION_BY_CODE = {
    "anger": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "joy": "happiness",
    "neutrality": "neutral",
    "sadness": "sadness",
    "surprise": "surprise",
}

_LABEL_TABLE = LabelTable(
    "Emozionalmente", ("samples.csv",), file_column="file_name", required_columns=("actor", "emotion_expressed")
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read the folder of `audio/` and `metadata/`, or one above it.

    Raises:
        DataError: there is no `samples.csv` below `root`, more than one, or one that lacks a column.
    """
    return _LABEL_TABLE.iter_items(root, _parse_labels)


def _parse_labels(name: str, source: str, labels: LabelRow) -> Clip | str:
    said = labels["emotion_expressed"].lower()
    if said not in EMOTION_BY_CODE:
        return f"has emotion {said!r}, expected one of {', '.join(EMOTION_BY_CODE)}"
    if not labels["actor"]:
        return "has no actor"
    return Clip(name, source, EMOTION_BY_CODE[said], "it", labels["actor"], sentence=labels.get("sentence") or None)
