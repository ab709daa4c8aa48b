"""EmoDB, the Berlin database: German, ten actors, ten texts."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.filename_parser import FilenameParser, ParsedName
from lakd_ray.corpora.items import Item

EMOTION_BY_CODE = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}

_PARSER = FilenameParser(
    "EmoDB",
    re.compile(r"(?P<speaker>03|08|09|1[0-6])(?P<text>[ab]\d\d)(?P<letter>[WLEAFTN])[a-z]"),
    "SSTTTEv.wav (speaker 03 or 08-16, text, emotion W L E A F T N, version), for instance 03a01Wa.wav",
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read every recording below a folder.

    Raises:
        DataError: no file name below `root` is one of EmoDB's.
    """
    return _PARSER.iter_items(
        root, lambda parts: ParsedName(EMOTION_BY_CODE[parts["letter"]], "de", parts["speaker"], parts["text"])
    )
