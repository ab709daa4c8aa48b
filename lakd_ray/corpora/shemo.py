"""Read ShEMO, Persian from radio plays: 87 speakers, six emotions.

3,000 recordings with names such as F01A01.wav; the speaker comes from the name, there is no sentence, session or split.
License: see the copy you download. Source: https://github.com/mansourehk/ShEMO.
"""

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
    """Yield every recording below a folder.

    Raises:
        DataError: no file name below `root` has the format of ShEMO.
    """
    return _PARSER.iter_items(root, lambda parts: ParsedName(EMOTION_BY_CODE[parts["letter"]], "fa", parts["speaker"]))
