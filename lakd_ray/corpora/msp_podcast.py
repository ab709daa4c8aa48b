"""Read MSP-Podcast, spontaneous English from podcasts, nine emotion classes.

Labels, speakers and splits are in `labels_consensus.csv`; the session is the podcast, there is no sentence. License:
granted by its owner on request, no redistribution. Source:
https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html.

Segments without agreement of the annotators (`X`) and those of Test3, whose labels are not published, are excluded.
Segments of unknown speakers (all of Test2) are excluded too, because these speakers could be in both training and test.
Option `unknown_speakers: true` includes them, as one speaker per podcast.
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
    ("labels_consensus.csv", "labels_concensus.csv"),  # the second is the spelling of older releases
    file_column="FileName",
    required_columns=("EmoClass", "SpkrID", "Split_Set"),
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every row of `labels_consensus.csv` and every recording without a row.

    Args:
        root: the folder with `Audios/` and `Labels/`, or a folder above it.
        options: `unknown_speakers`.

    Raises:
        ConfigError: `unknown_speakers` is neither true nor false.
        DataError: there is not exactly one `labels_consensus.csv` below `root`, or it lacks a column.
    """
    include_unknown = options.get("unknown_speakers", False)
    if not isinstance(include_unknown, bool):
        raise ConfigError(
            f"option `unknown_speakers` of importer `msp_podcast` is {include_unknown!r}; expected true or false."
        )

    def parse_labels(name: str, source: str, labels: LabelRow) -> Clip | Excluded | str:
        code, speaker, part = labels["EmoClass"], labels["SpkrID"], labels["Split_Set"]
        podcast = _SEGMENT_NAME.fullmatch(name)
        if code == NO_AGREEMENT:
            return Excluded(f"the annotators did not agree ({NO_AGREEMENT})")
        if not code and part == "Test3":
            return Excluded("the labels of Test3 are not published")
        if code not in EMOTION_BY_CODE:
            return f"has EmoClass {code!r}, expected one of {', '.join(EMOTION_BY_CODE)}"
        if speaker.lower() in UNKNOWN_SPEAKER_IDS:
            if not include_unknown:
                return Excluded("the speaker is unknown (option unknown_speakers)")
            if podcast is None:
                return "has neither a known speaker nor a file name with the number of its podcast"
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
