"""Read EmoDB, the Berlin database of acted German: ten actors, ten texts, seven emotions.

535 recordings named SSTTTEv.wav; speaker and sentence come from the name, there is no session or split. License: free
for research, see the copy you download. Source: http://emodb.bilderbar.info/.
"""

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
    """Yield every recording below a folder.

    Raises:
        DataError: no file name below `root` has the format of EmoDB.
    """
    return _PARSER.iter_items(
        root, lambda parts: ParsedName(EMOTION_BY_CODE[parts["letter"]], "de", parts["speaker"], parts["text"])
    )
