"""CaFE: Canadian French, twelve actors, six sentences."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray.corpora.clip import Item, LeftOut
from lakd_ray.corpora.filenames import FileNames, Parts, Said, choice

LETTERS = {
    "C": "anger",
    "D": "disgust",
    "J": "happiness",
    "N": "neutral",
    "P": "fear",
    "S": "surprise",
    "T": "sadness",
}
INTENSITIES = {"both": ("1", "2"), "weak": ("1",), "strong": ("2",)}

_NAMES = FileNames(
    "CaFE",
    re.compile(r"(?P<actor>0[1-9]|1[0-2])-(?P<letter>[CDJNPST])-(?P<intensity>[12])-(?P<sentence>[1-6])"),
    "AA-E-I-S.wav (actor 01-12, emotion C D J N P S T, intensity 1-2, sentence 1-6), for instance 01-C-2-1.wav",
)


def read(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read every recording below a folder.

    Raises:
        ConfigError: `intensity` is not known.
        DataError: no file name below `root` is one of CaFE's.
    """
    wanted = choice("cafe", "intensity", options.get("intensity", "both"), tuple(INTENSITIES))

    def understand(parts: Parts) -> Said | LeftOut | str:
        neutral = parts["letter"] == "N"
        if neutral and parts["intensity"] != "1":
            return "is neutral with intensity 2; neutral has only 1"
        if not neutral and parts["intensity"] not in INTENSITIES[wanted]:
            return LeftOut(f"option intensity: {wanted}")
        return Said(LETTERS[parts["letter"]], "fr", parts["actor"], parts["sentence"])

    return _NAMES.read(root, understand)
