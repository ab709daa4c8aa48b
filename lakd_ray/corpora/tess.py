"""TESS: Toronto English, an older and a younger actress, 200 words in one carrier phrase."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.filename_parser import FilenameParser, ParsedName
from lakd_ray.corpora.items import Item

EMOTION_BY_CODE = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "ps": "surprise",
    "sad": "sadness",
}

_PARSER = FilenameParser(
    "TESS",
    re.compile(  # the release has one file that begins with OA
        r"(?P<speaker>OA|YA)F?_(?P<word>[A-Za-z]+)_(?P<name>angry|disgust|fear|happy|neutral|ps|sad)"
    ),
    "<OAF or YAF>_<word>_<angry, disgust, fear, happy, neutral, ps or sad>.wav, for instance OAF_back_angry.wav",
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read every recording below a folder.

    Raises:
        DataError: no file name below `root` is one of TESS's.
    """
    return _PARSER.iter_items(
        root, lambda parts: ParsedName(EMOTION_BY_CODE[parts["name"]], "en", f"{parts['speaker']}F", parts["word"])
    )
