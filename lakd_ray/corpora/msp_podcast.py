"""MSP-Podcast: spontaneous English from podcasts. Labels are in `labels_consensus.csv`.

Segments on which the annotators did not agree (`X`) and those of Test3, whose labels are not published, are left out.
So are those whose speaker is not known (Test2 is made of them): they could be heard in training and in test. Option
`unknown_speakers: true` keeps them, as one speaker of each podcast.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.clip import Clip, Item, LeftOut, canonical_split
from lakd_ray.corpora.labelled import Labelled, Labels
from lakd_ray.errors import ConfigError

CODES = {
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
UNKNOWN = ("", "unknown")

_PODCAST = re.compile(r"MSP-PODCAST_(?P<podcast>\d+)_\w+")
_TABLE = Labelled(
    "MSP-Podcast",
    ("labels_consensus.csv", "labels_concensus.csv"),  # older releases spell it so
    file="FileName",
    needs=("EmoClass", "SpkrID", "Split_Set"),
)


def read(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read the folder of `Audios/` and `Labels/`, or one above it.

    Raises:
        ConfigError: `unknown_speakers` is neither true nor false.
        DataError: there is no `labels_consensus.csv` below `root`, more than one, or one that lacks a column.
    """
    keep = options.get("unknown_speakers", False)
    if not isinstance(keep, bool):
        raise ConfigError(f"option `unknown_speakers` of importer `msp_podcast` is {keep!r}; expected true or false.")

    def understand(name: str, source: str, labels: Labels) -> Clip | LeftOut | str:
        code, speaker, part = labels["EmoClass"], labels["SpkrID"], labels["Split_Set"]
        podcast = _PODCAST.fullmatch(name)
        if code == NO_AGREEMENT:
            return LeftOut(f"the annotators did not agree ({NO_AGREEMENT})")
        if not code and part == "Test3":
            return LeftOut("Test3, whose labels are not published")
        if code not in CODES:
            return f"has EmoClass {code!r}, expected one of {', '.join(CODES)}"
        if speaker.lower() in UNKNOWN:
            if not keep:
                return LeftOut("the speaker is not known (option unknown_speakers)")
            if podcast is None:
                return "has neither a known speaker nor a name that tells the podcast"
            speaker = f"Unknown-{podcast['podcast']}"
        return Clip(
            id=name,
            source=source,
            emotion=CODES[code],
            language="en",
            speaker=speaker,
            session=podcast["podcast"] if podcast else None,
            split=canonical_split(part.rstrip("123")) or None,
        )

    return _TABLE.read(root, understand)
