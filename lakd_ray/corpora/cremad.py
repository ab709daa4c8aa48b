"""Read CREMA-D, acted American English: 91 actors, twelve sentences, six emotions in up to three levels.

7,442 recordings named <actor>_<sentence>_<emotion>_<level>.wav; speaker and sentence come from the name, there is no
session or split. License: ODbL 1.0. Source: https://github.com/CheyneyComputerScience/CREMA-D.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.filename_parser import FilenameParser, ParsedName
from lakd_ray.corpora.items import Item

EMOTION_BY_CODE = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}

_PARSER = FilenameParser(
    "CREMA-D",
    re.compile(  # the release has one file whose level is X, not XX
        r"(?P<actor>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<code>ANG|DIS|FEA|HAP|NEU|SAD)_(?:LO|MD|HI|XX?)"
    ),
    "<actor>_<sentence>_<ANG, DIS, FEA, HAP, NEU or SAD>_<LO, MD, HI or XX>.wav, for instance 1001_DFA_ANG_XX.wav",
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every recording below a folder.

    Raises:
        DataError: no file name below `root` has the format of CREMA-D.
    """
    return _PARSER.iter_items(
        root, lambda parts: ParsedName(EMOTION_BY_CODE[parts["code"]], "en", parts["actor"], parts["sentence"])
    )
