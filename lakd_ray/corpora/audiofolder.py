"""Read recordings that are sorted into folders `<language>/<speaker>/<emotion>/` (importer `audiofolder`).

All labels come from the folder names; there is no sentence, session or split.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray import storage
from lakd_ray.audio import sources
from lakd_ray.corpora.items import Clip, InvalidItem, Item, normalize_emotion
from lakd_ray.errors import DataError

_EXPECTED_LAYOUT = "<language>/<speaker>/<emotion>/<recording>"


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every recording below a folder; its id is its relative path.

    Raises:
        DataError: no recording is exactly three folders below `root`.
    """
    files = [file for file in sources.list_files(root) if sources.has_audio_suffix(file)]
    if not any(file.count("/") == 3 for file in files):
        example = f", for instance {files[0]}" if files else ""
        raise DataError(
            f"{root}: found {len(files)} recordings{example}. Expected {_EXPECTED_LAYOUT}, for instance "
            "en/anna/anger/001.wav: check the corpus's `root`."
        )
    for file in files:
        name, source = unicodedata.normalize("NFC", file), storage.join(root, file)
        if name.count("/") != 3:
            yield InvalidItem(id=name, source=source, reason=f"is not in the layout {_EXPECTED_LAYOUT}")
            continue
        language, speaker, emotion, _ = name.split("/")
        yield Clip(name, source, normalize_emotion(emotion), language.lower(), speaker)
