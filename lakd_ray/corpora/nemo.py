"""Read nEMO, acted Polish speech: nine actors, ninety sentences, six emotions.

4,481 recordings named <speaker>_<emotion>_<sentence>.wav; speaker and sentence come from the name, there is no session
or split. License: CC BY-NC-SA 4.0. Source: https://huggingface.co/datasets/amu-cai/nEMO.
"""

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
    """Yield every recording below a folder.

    Raises:
        DataError: no file name below `root` has the format of nEMO.
    """
    return _PARSER.iter_items(
        root, lambda parts: ParsedName(parts["emotion"], "pl", parts["speaker"], parts["sentence"])
    )
