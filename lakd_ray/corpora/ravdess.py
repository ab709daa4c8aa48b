"""Read RAVDESS, acted North American English: 24 actors, two sentences, spoken and sung, eight emotions.

1,440 spoken recordings named MM-CC-EE-II-SS-RR-AA.wav; speaker and sentence come from the name, there is no session or
split. License: CC BY-NC-SA 4.0. Source: https://zenodo.org/records/1188976.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.filename_parser import FilenameMatch, FilenameParser, ParsedName, validate_choice
from lakd_ray.corpora.items import Excluded, Item

EMOTION_BY_CODE = {
    "01": "neutral",
    "02": "calm",
    "03": "happiness",
    "04": "sadness",
    "05": "anger",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
CHANNEL_CODES = {"speech": ("01",), "song": ("02",), "both": ("01", "02")}

_PARSER = FilenameParser(
    "RAVDESS",
    re.compile(
        r"(?P<modality>0[123])-(?P<channel>0[12])-(?P<code>0[1-8])-0[12]-(?P<sentence>0[12])-0[12]-(?P<actor>0[1-9]|1\d|2[0-4])"
    ),
    "MM-CC-EE-II-SS-RR-AA.wav (modality, channel, emotion 01-08, intensity, sentence, repetition, actor 01-24), for "
    "instance 03-01-05-02-01-01-12.wav",
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every recording below a folder; option `channel` selects speech (the default), song or both.

    Raises:
        ConfigError: `channel` is not speech, song or both.
        DataError: no file name below `root` has the format of RAVDESS.
    """
    channel = validate_choice("ravdess", "channel", options.get("channel", "speech"), tuple(CHANNEL_CODES))

    def parse_labels(parts: FilenameMatch) -> ParsedName | Excluded:
        if parts["modality"] != "03":
            return Excluded("video; its audio is a separate recording")
        if parts["channel"] not in CHANNEL_CODES[channel]:
            return Excluded(f"option channel: {channel}")
        return ParsedName(EMOTION_BY_CODE[parts["code"]], "en", parts["actor"], parts["sentence"])

    return _PARSER.iter_items(root, parse_labels)
