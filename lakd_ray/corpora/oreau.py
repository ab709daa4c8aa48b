"""Oréau: French, 32 speakers, 79 utterances, letters as in CaFE."""

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
    """Read every recording below a folder.

    Raises:
        DataError: no file name below `root` is one of Oréau's.
    """
    return _PARSER.iter_items(
        root, lambda parts: ParsedName(EMOTION_BY_CODE[parts["letter"]], "fr", parts["speaker"], parts["text"])
    )
