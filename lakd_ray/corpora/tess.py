"""Read TESS, acted Toronto English: an older and a younger actress, 200 words in one carrier phrase, seven emotions.

2,800 recordings with names such as OAF_back_angry.wav; speaker and word (as the sentence) come from the name, there is
no session or split. License: CC BY-NC-ND 4.0. Source: https://doi.org/10.5683/SP2/E8H2MF.
"""

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
    """Yield every recording below a folder.

    Raises:
        DataError: no file name below `root` has the format of TESS.
    """
    return _PARSER.iter_items(
        root, lambda parts: ParsedName(EMOTION_BY_CODE[parts["name"]], "en", f"{parts['speaker']}F", parts["word"])
    )
