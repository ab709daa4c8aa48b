"""Read Emozionalmente, acted Italian speech: 431 crowd-sourced amateur actors, 18 sentences, seven emotions.

6,902 recordings in `audio/`, with labels in `metadata/samples.csv`; there is no session or split. License: see the copy
you download. Source: https://zenodo.org/records/6569824.
"""

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
    """Yield every row of `samples.csv` and every recording without a row.

    Args:
        root: the folder with `audio/` and `metadata/`, or a folder above it.
        options: none.

    Raises:
        DataError: there is not exactly one `samples.csv` below `root`, or it lacks a column.
    """
    return _LABEL_TABLE.iter_items(root, _parse_labels)


def _parse_labels(name: str, source: str, labels: LabelRow) -> Clip | str:
    code = labels["emotion_expressed"].lower()
    if code not in EMOTION_BY_CODE:
        return f"has emotion {code!r}, expected one of {', '.join(EMOTION_BY_CODE)}"
    if not labels["actor"]:
        return "has no actor"
    return Clip(name, source, EMOTION_BY_CODE[code], "it", labels["actor"], sentence=labels.get("sentence") or None)
