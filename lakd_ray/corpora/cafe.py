"""CaFE: Canadian French, twelve actors, six sentences. Everything is in the file name; folder names are not read."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray import storage
from lakd_ray.corpora.clip import Clip, Problem
from lakd_ray.errors import ConfigError, DataError

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

_NAME = re.compile(r"(?P<actor>0[1-9]|1[0-2])-(?P<letter>[CDJNPST])-(?P<intensity>[12])-(?P<sentence>[1-6])")


def read(root: str, options: Mapping[str, Any]) -> Iterator[Clip | Problem]:
    """Read every recording below a folder.

    Raises:
        ConfigError: `intensity` is not known.
        DataError: no file name below `root` is one of CaFE's.
    """
    wanted = options.get("intensity", "both")
    if not isinstance(wanted, str) or wanted not in INTENSITIES:
        raise ConfigError(f"option `intensity` of importer `cafe` is {wanted!r}; expected {', '.join(INTENSITIES)}.")
    files = [info for info in storage.list_files(root) if not info.name.startswith(".")]
    recordings = {info.location: info.name[:-4] for info in files if info.name.lower().endswith(".wav")}
    if not any(_NAME.fullmatch(name) for name in recordings.values()):
        example = f", for instance {files[0].location}" if files else ""
        raise DataError(
            f"{root} is not CaFE: found {len(files)} files{example}. Expected recordings named AA-E-I-S.wav, for "
            "instance 01-C-2-1.wav: check the corpus's `root`."
        )
    for source, name in recordings.items():
        parts = _NAME.fullmatch(name)
        if parts is None:
            reason = "is not named AA-E-I-S.wav (actor 01-12, emotion C D J N P S T, intensity 1-2, sentence 1-6)"
            yield Problem(id=name, source=source, reason=reason)
        elif parts["letter"] == "N" and parts["intensity"] != "1":
            yield Problem(id=name, source=source, reason="is neutral with intensity 2; neutral has only 1")
        elif parts["letter"] == "N" or parts["intensity"] in INTENSITIES[wanted]:
            yield Clip(
                id=name,
                source=source,
                emotion=LETTERS[parts["letter"]],
                language="fr",
                speaker=parts["actor"],
                sentence=parts["sentence"],
            )
