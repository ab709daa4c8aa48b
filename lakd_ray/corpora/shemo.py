"""ShEMO: Persian, 87 speakers, from radio plays. Names do not tell what is said."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.filename_parser import FilenameParser, ParsedName
from lakd_ray.corpora.items import Item

EMOTION_BY_CODE = {
    "A": "anger",
    "F": "fear",
    "H": "happiness",
    "N": "neutral",
    "S": "sadness",
    "W": "surprise",
}

_PARSER = FilenameParser(
    "ShEMO",
    re.compile(r"(?P<speaker>[FM]\d\d)(?P<letter>[AFHNSW])\d+"),
    "<F or M>NN<A, F, H, N, S or W>NN.wav, for instance F01A01.wav",
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read every recording below a folder.

    Raises:
        DataError: no file name below `root` is one of ShEMO's.
    """
    return _PARSER.iter_items(root, lambda parts: ParsedName(EMOTION_BY_CODE[parts["letter"]], "fa", parts["speaker"]))
