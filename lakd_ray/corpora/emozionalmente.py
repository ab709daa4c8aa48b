"""Emozionalmente: Italian, 431 crowd-sourced amateur actors, 18 sentences. Labels are in `metadata/samples.csv`."""

from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.clip import Clip, Item
from lakd_ray.corpora.labelled import Labelled, Labels

EMOTIONS = {
    "anger": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "joy": "happiness",
    "neutrality": "neutral",
    "sadness": "sadness",
    "surprise": "surprise",
}

_TABLE = Labelled("Emozionalmente", ("samples.csv",), file="file_name", needs=("actor", "emotion_expressed"))


def read(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read the folder of `audio/` and `metadata/`, or one above it.

    Raises:
        DataError: there is no `samples.csv` below `root`, more than one, or one that lacks a column.
    """
    return _TABLE.read(root, _understand)


def _understand(name: str, source: str, labels: Labels) -> Clip | str:
    said = labels["emotion_expressed"].lower()
    if said not in EMOTIONS:
        return f"has emotion {said!r}, expected one of {', '.join(EMOTIONS)}"
    if not labels["actor"]:
        return "has no actor"
    return Clip(name, source, EMOTIONS[said], "it", labels["actor"], sentence=labels.get("sentence") or None)
