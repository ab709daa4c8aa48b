"""ESD: ten Mandarin and ten English speakers, 350 sentences of each language in five emotions.

The number in a file's name tells the emotion: 350 sentences of one, then the same of the next. Where a folder above the
file has an emotion's name, it must agree.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lakd_ray.corpora.filename_parser import FilenameMatch, FilenameParser, ParsedName
from lakd_ray.corpora.items import Excluded, Item
from lakd_ray.errors import ConfigError

EMOTION_BY_FOLDER = {
    "Neutral": "neutral",
    "Angry": "anger",
    "Happy": "happiness",
    "Sad": "sadness",
    "Surprise": "surprise",
}
LANGUAGES = ("en", "zh")
_SENTENCES_PER_EMOTION = 350
_FIRST_ENGLISH_SPEAKER = 11

_PARSER = FilenameParser(
    "ESD",
    re.compile(r"(?P<speaker>00(?:0[1-9]|1\d|20))_(?P<number>\d{6})"),
    "<speaker 0001-0020>_<number>.wav, for instance 0011_000351.wav",
)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read every recording below a folder.

    Raises:
        ConfigError: `languages` is not a list of those that ESD has.
        DataError: no file name below `root` is one of ESD's.
    """
    wanted = options.get("languages", LANGUAGES)
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not wanted or set(wanted) - set(LANGUAGES):
        raise ConfigError(f"option `languages` of importer `esd` is {wanted!r}; expected a list of en, zh.")

    def parse_labels(parts: FilenameMatch) -> ParsedName | Excluded | str:
        language = "en" if int(parts["speaker"]) >= _FIRST_ENGLISH_SPEAKER else "zh"
        if language not in wanted:
            return Excluded(f"option languages: {', '.join(wanted)}")
        block, sentence = divmod(int(parts["number"]) - 1, _SENTENCES_PER_EMOTION)
        if not 0 <= block < len(EMOTION_BY_FOLDER):
            return (
                f"has number {parts['number']}, expected 000001 to {_SENTENCES_PER_EMOTION * len(EMOTION_BY_FOLDER):06}"
            )
        emotion = list(EMOTION_BY_FOLDER.values())[block]
        folders = [EMOTION_BY_FOLDER[folder] for folder in parts.string.split("/")[:-1] if folder in EMOTION_BY_FOLDER]
        if any(folder != emotion for folder in folders):
            return f"is {emotion} by its number and {' and '.join(folders)} by its folder"
        return ParsedName(emotion, language, parts["speaker"], f"{language}-{sentence + 1:03}")

    return _PARSER.iter_items(root, parse_labels)
