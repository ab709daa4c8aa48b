"""Read SUBESCO, acted Bangla speech: twenty actors, ten sentences, seven emotions, five takes of each.

7,000 recordings with names such as F_02_MONIKA_S_1_NEUTRAL_5.wav; speaker and sentence come from the name, there is no
session or split. License: CC BY 4.0. Source: https://zenodo.org/records/4526477.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.filename_parser import FilenameParser, ParsedName
from lakd_ray.corpora.items import Item

EMOTION_BY_CODE = {
    "ANGRY": "anger",
    "DISGUST": "disgust",
    "FEAR": "fear",
    "HAPPY": "happiness",
    "NEUTRAL": "neutral",
    "SAD": "sadness",
    "SURPRISE": "surprise",
}

_PARSER = FilenameParser(
    "SUBESCO",
    re.compile(r"(?P<speaker>[FM]_\d\d)_\w+_S_(?P<sentence>\d+)_(?P<name>[A-Z]+)_\d+"),
    "<F or M>_NN_<name>_S_<sentence>_<EMOTION>_<take>.wav, for instance F_02_MONIKA_S_1_NEUTRAL_5.wav",
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every recording below a folder.

    Raises:
        DataError: no file name below `root` has the format of SUBESCO.
    """
    return _PARSER.iter_items(
        root,
        lambda parts: (
            ParsedName(EMOTION_BY_CODE[parts["name"]], "bn", parts["speaker"], str(int(parts["sentence"])))
            if parts["name"] in EMOTION_BY_CODE
            else f"has emotion {parts['name']}, expected one of {', '.join(EMOTION_BY_CODE)}"
        ),
    )
