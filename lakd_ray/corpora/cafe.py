"""CaFE: Canadian French, twelve actors, six sentences."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.filename_parser import FilenameMatch, FilenameParser, ParsedName, validate_choice
from lakd_ray.corpora.items import Excluded, Item

EMOTION_BY_CODE = {
    "C": "anger",
    "D": "disgust",
    "J": "happiness",
    "N": "neutral",
    "P": "fear",
    "S": "surprise",
    "T": "sadness",
}
INTENSITY_CODES = {"both": ("1", "2"), "weak": ("1",), "strong": ("2",)}

_PARSER = FilenameParser(
    "CaFE",
    re.compile(r"(?P<actor>0[1-9]|1[0-2])-(?P<letter>[CDJNPST])-(?P<intensity>[12])-(?P<sentence>[1-6])"),
    "AA-E-I-S.wav (actor 01-12, emotion C D J N P S T, intensity 1-2, sentence 1-6), for instance 01-C-2-1.wav",
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read every recording below a folder.

    Raises:
        ConfigError: `intensity` is not known.
        DataError: no file name below `root` is one of CaFE's.
    """
    wanted = validate_choice("cafe", "intensity", options.get("intensity", "both"), tuple(INTENSITY_CODES))

    def parse_labels(parts: FilenameMatch) -> ParsedName | Excluded | str:
        neutral = parts["letter"] == "N"
        if neutral and parts["intensity"] != "1":
            return "is neutral with intensity 2; neutral has only 1"
        if not neutral and parts["intensity"] not in INTENSITY_CODES[wanted]:
            return Excluded(f"option intensity: {wanted}")
        return ParsedName(EMOTION_BY_CODE[parts["letter"]], "fr", parts["actor"], parts["sentence"])

    return _PARSER.iter_items(root, parse_labels)
