"""ESD: ten Mandarin and ten English speakers, 350 sentences of each language in five emotions.

The number in a file's name tells the emotion: 350 sentences of one, then the same of the next. Where a folder above the
file has an emotion's name, it must agree.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lakd_ray.corpora.clip import Item, LeftOut
from lakd_ray.corpora.filenames import FileNames, Parts, Said
from lakd_ray.errors import ConfigError

FOLDERS = {"Neutral": "neutral", "Angry": "anger", "Happy": "happiness", "Sad": "sadness", "Surprise": "surprise"}
LANGUAGES = ("en", "zh")
_SENTENCES = 350
_FIRST_ENGLISH = 11

_NAMES = FileNames(
    "ESD",
    re.compile(r"(?P<speaker>00(?:0[1-9]|1\d|20))_(?P<number>\d{6})"),
    "<speaker 0001-0020>_<number>.wav, for instance 0011_000351.wav",
)


def read(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read every recording below a folder.

    Raises:
        ConfigError: `languages` is not a list of those that ESD has.
        DataError: no file name below `root` is one of ESD's.
    """
    wanted = options.get("languages", LANGUAGES)
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not wanted or set(wanted) - set(LANGUAGES):
        raise ConfigError(f"option `languages` of importer `esd` is {wanted!r}; expected a list of en, zh.")

    def understand(parts: Parts) -> Said | LeftOut | str:
        language = "en" if int(parts["speaker"]) >= _FIRST_ENGLISH else "zh"
        if language not in wanted:
            return LeftOut(f"option languages: {', '.join(wanted)}")
        block, sentence = divmod(int(parts["number"]) - 1, _SENTENCES)
        if not 0 <= block < len(FOLDERS):
            return f"has number {parts['number']}, expected 000001 to {_SENTENCES * len(FOLDERS):06}"
        emotion = list(FOLDERS.values())[block]
        folders = [FOLDERS[folder] for folder in parts.string.split("/")[:-1] if folder in FOLDERS]
        if any(folder != emotion for folder in folders):
            return f"is {emotion} by its number and {' and '.join(folders)} by its folder"
        return Said(emotion, language, parts["speaker"], f"{language}-{sentence + 1:03}")

    return _NAMES.read(root, understand)
