"""nEMO: Polish, nine actors, ninety sentences."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.filename_parser import FilenameParser, ParsedName
from lakd_ray.corpora.items import Item

_PARSER = FilenameParser(
    "nEMO",
    re.compile(
        r"(?P<speaker>[A-Za-z0-9]+)_(?P<emotion>anger|fear|happiness|neutral|sadness|surprise)_(?P<sentence>\d+)"
    ),
    "<speaker>_<anger, fear, happiness, neutral, sadness or surprise>_<sentence>.wav, for instance SB0_anger_12.wav",
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read every recording below a folder.

    Raises:
        DataError: no file name below `root` is one of nEMO's.
    """
    return _PARSER.iter_items(
        root, lambda parts: ParsedName(parts["emotion"], "pl", parts["speaker"], parts["sentence"])
    )
