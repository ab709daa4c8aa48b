"""Read ESD, the Emotional Speech Dataset: ten Mandarin and ten English speakers, five emotions.

35,000 recordings named <speaker>_<number>.wav. The number encodes emotion and sentence: the 350 sentences of a
language with the first emotion, then the same sentences with the next. If a folder above the file is named like an
emotion, it must match. There is no session or split. License: for research, on request. Source:
https://github.com/HLTSingapore/Emotional-Speech-Data.
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
    """Yield every recording below a folder; option `languages` selects languages.

    Raises:
        ConfigError: `languages` is not a list of languages of ESD.
        DataError: no file name below `root` has the format of ESD.
    """
    languages = options.get("languages", LANGUAGES)
    is_list = isinstance(languages, Sequence) and not isinstance(languages, str)
    if not is_list or not languages or set(languages) - set(LANGUAGES):
        raise ConfigError(f"option `languages` of importer `esd` is {languages!r}; expected a list of en, zh.")

    def parse_labels(parts: FilenameMatch) -> ParsedName | Excluded | str:
        language = "en" if int(parts["speaker"]) >= _FIRST_ENGLISH_SPEAKER else "zh"
        if language not in languages:
            return Excluded(f"option languages: {', '.join(languages)}")
        block, sentence = divmod(int(parts["number"]) - 1, _SENTENCES_PER_EMOTION)
        if not 0 <= block < len(EMOTION_BY_FOLDER):
            last = _SENTENCES_PER_EMOTION * len(EMOTION_BY_FOLDER)
            return f"has number {parts['number']}, expected 000001 to {last:06}"
        emotion = list(EMOTION_BY_FOLDER.values())[block]
        folders = [EMOTION_BY_FOLDER[folder] for folder in parts.string.split("/")[:-1] if folder in EMOTION_BY_FOLDER]
        if any(folder != emotion for folder in folders):
            return f"is {emotion} by its number and {' and '.join(folders)} by its folder"
        return ParsedName(emotion, language, parts["speaker"], f"{language}-{sentence + 1:03}")

    return _PARSER.iter_items(root, parse_labels)
