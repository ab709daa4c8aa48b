"""Read Oréau, acted French speech: 32 speakers, 79 utterances, seven emotions with the letters of CaFE.

Recordings are named SSUUUEx.wav; speaker and sentence come from the name, there is no session or split. License: see
the copy you download. Source: https://zenodo.org/records/4405783.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.cafe import EMOTION_BY_CODE
from lakd_ray.corpora.filename_parser import FilenameParser, ParsedName
from lakd_ray.corpora.items import Item

_PARSER = FilenameParser(
    "Oréau",
    re.compile(r"(?P<speaker>\d\d)(?P<text>[0-9A-Za-z]{3})(?P<letter>[CDJNPST])[0-9A-Za-z]"),
    "SSUUUEx.wav (speaker, utterance, emotion C D J N P S T, version), for instance 01a01Ca.wav",
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every recording below a folder.

    Raises:
        DataError: no file name below `root` has the format of Oréau.
    """
    return _PARSER.iter_items(
        root, lambda parts: ParsedName(EMOTION_BY_CODE[parts["letter"]], "fr", parts["speaker"], parts["text"])
    )
