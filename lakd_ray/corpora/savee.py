"""Read SAVEE, acted British English: four male actors, seven emotions.

480 recordings. The release has a folder per actor (`DC/a01.wav`), copies have `DC_a01.wav`. The speaker comes from the
name. There is no sentence: the numbers in the names do not identify it, since the three sentences that all emotions
share have a different number in each. There is no session or split. License: free for research, on registration.
Source: http://kahlan.eps.surrey.ac.uk/savee/.
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
    """Yield every recording below a folder.

    Raises:
        DataError: no file name below `root` has the format of SAVEE.
    """
    return _PARSER.iter_items(root, lambda parts: ParsedName(EMOTION_BY_CODE[parts["code"]], "en", parts["speaker"]))
