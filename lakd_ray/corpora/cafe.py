"""Read CaFE, acted Canadian French: twelve actors, six sentences, six emotions in two intensities, and neutral.

936 recordings named AA-E-I-S.wav; speaker and sentence come from the name, there is no session or split. License: CC
BY-NC-SA 4.0. Source: https://zenodo.org/records/1478765.
"""

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
    """Yield every recording below a folder; option `intensity` selects by intensity, neutral is always included.

    Raises:
        ConfigError: `intensity` is not both, weak or strong.
        DataError: no file name below `root` has the format of CaFE.
    """
    intensity = validate_choice("cafe", "intensity", options.get("intensity", "both"), tuple(INTENSITY_CODES))

    def parse_labels(parts: FilenameMatch) -> ParsedName | Excluded | str:
        is_neutral = parts["letter"] == "N"
        if is_neutral and parts["intensity"] != "1":
            return "is neutral with intensity 2, expected intensity 1"
        if not is_neutral and parts["intensity"] not in INTENSITY_CODES[intensity]:
            return Excluded(f"option intensity: {intensity}")
        return ParsedName(EMOTION_BY_CODE[parts["letter"]], "fr", parts["actor"], parts["sentence"])

    return _PARSER.iter_items(root, parse_labels)
