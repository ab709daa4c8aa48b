"""SAVEE: British English, four male actors. The release has a folder for each (`DC/a01.wav`), copies have `DC_a01.wav`.

The numbers in the names do not tell the sentence: three of each emotion's are common to all under numbers of their own.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.filename_parser import FilenameParser, ParsedName
from lakd_ray.corpora.items import Item

EMOTION_BY_CODE = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}

_PARSER = FilenameParser(
    "SAVEE",
    re.compile(r"(?P<speaker>DC|JE|JK|KL)[_/](?P<code>sa|su|[adfhn])\d\d"),
    "<DC, JE, JK or KL>_<a, d, f, h, n, sa or su>NN.wav, for instance DC_a01.wav",
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read every recording below a folder.

    Raises:
        DataError: no file name below `root` is one of SAVEE's.
    """
    return _PARSER.iter_items(root, lambda parts: ParsedName(EMOTION_BY_CODE[parts["code"]], "en", parts["speaker"]))
