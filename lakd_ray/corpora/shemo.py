"""ShEMO: Persian, 87 speakers, from radio plays. Names do not tell what is said."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.clip import Item
from lakd_ray.corpora.filenames import FileNames, Said

LETTERS = {
    "A": "anger",
    "F": "fear",
    "H": "happiness",
    "N": "neutral",
    "S": "sadness",
    "W": "surprise",
}

_NAMES = FileNames(
    "ShEMO",
    re.compile(r"(?P<speaker>[FM]\d\d)(?P<letter>[AFHNSW])\d+"),
    "<F or M>NN<A, F, H, N, S or W>NN.wav, for instance F01A01.wav",
)


def read(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read every recording below a folder.

    Raises:
        DataError: no file name below `root` is one of ShEMO's.
    """
    return _NAMES.read(root, lambda parts: Said(LETTERS[parts["letter"]], "fa", parts["speaker"]))
