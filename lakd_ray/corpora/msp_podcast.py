"""MSP-Podcast: spontaneous English from podcasts. Labels are in `labels_consensus.csv`.

Segments on which the annotators did not agree (`X`) and those of Test3, whose labels are not published, are left out.
So are those whose speaker is not known (Test2 is made of them): they could be heard in training and in test. Option
`unknown_speakers: true` keeps them, as one speaker of each podcast.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.items import Clip, Excluded, Item, normalize_split
from lakd_ray.corpora.label_table import LabelRow, LabelTable
from lakd_ray.errors import ConfigError

EMOTION_BY_CODE = {
    "A": "anger",
    "S": "sadness",
    "H": "happiness",
    "U": "surprise",
    "F": "fear",
    "D": "disgust",
    "C": "contempt",
    "N": "neutral",
    "O": "other",
}
NO_AGREEMENT = "X"
UNKNOWN_SPEAKER_IDS = ("", "unknown")

_SEGMENT_NAME = re.compile(r"MSP-PODCAST_(?P<podcast>\d+)_\w+")
_LABEL_TABLE = LabelTable(
    "MSP-Podcast",
    ("labels_consensus.csv", "labels_concensus.csv"),  # older releases spell it so
    file_column="FileName",
    required_columns=("EmoClass", "SpkrID", "Split_Set"),
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read the folder of `Audios/` and `Labels/`, or one above it.

    Raises:
        ConfigError: `unknown_speakers` is neither true nor false.
        DataError: there is no `labels_consensus.csv` below `root`, more than one, or one that lacks a column.
    """
    keep = options.get("unknown_speakers", False)
    if not isinstance(keep, bool):
        raise ConfigError(f"option `unknown_speakers` of importer `msp_podcast` is {keep!r}; expected true or false.")

    def parse_labels(name: str, source: str, labels: LabelRow) -> Clip | Excluded | str:
        code, speaker, part = labels["EmoClass"], labels["SpkrID"], labels["Split_Set"]
        podcast = _SEGMENT_NAME.fullmatch(name)
        if code == NO_AGREEMENT:
            return Excluded(f"the annotators did not agree ({NO_AGREEMENT})")
        if not code and part == "Test3":
            return Excluded("Test3, whose labels are not published")
        if code not in EMOTION_BY_CODE:
            return f"has EmoClass {code!r}, expected one of {', '.join(EMOTION_BY_CODE)}"
        if speaker.lower() in UNKNOWN_SPEAKER_IDS:
            if not keep:
                return Excluded("the speaker is not known (option unknown_speakers)")
            if podcast is None:
                return "has neither a known speaker nor a name that tells the podcast"
            speaker = f"Unknown-{podcast['podcast']}"
        return Clip(
            id=name,
            source=source,
            emotion=EMOTION_BY_CODE[code],
            language="en",
            speaker=speaker,
            session=podcast["podcast"] if podcast else None,
            split=normalize_split(part.rstrip("123")) or None,
        )

    return _LABEL_TABLE.iter_items(root, parse_labels)
