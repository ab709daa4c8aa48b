"""IEMOCAP: acted and improvised dialogs in English, ten speakers in five sessions.

Most papers use neutral, happiness with excitement, anger and sadness (5,531 utterances); without excitement it is
4,490. Which of the two a result stands for is the option `merge_excited`. Utterances on which the annotators did not
agree (`xxx`) carry no label and are left out.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray import storage
from lakd_ray.corpora.clip import Clip, Problem
from lakd_ray.errors import ConfigError, DataError

CODES = {
    "neu": "neutral",
    "hap": "happiness",
    "exc": "excitement",
    "ang": "anger",
    "sad": "sadness",
    "fru": "frustration",
    "sur": "surprise",
    "fea": "fear",
    "dis": "disgust",
    "oth": "other",
}
NO_AGREEMENT = "xxx"

# The letter after the session tells whose motion was captured in the dialog; only the suffix tells who speaks.
_UTTERANCE = re.compile(r"Ses(?P<session>\d\d)[FM]_\w+_(?P<gender>[FM])[^_]*")
_LABEL = re.compile(r"\[[\d.]+ - [\d.]+\]\t(?P<utterance>\S+)\t(?P<code>\w+)\t\[")


def read(root: str, options: Mapping[str, Any]) -> Iterator[Clip | Problem]:
    """Read the release folder, or any folder above it.

    Raises:
        ConfigError: `merge_excited` is neither true nor false.
        DataError: there are no utterances or no labels below `root`.
    """
    merge = options.get("merge_excited", False)
    if not isinstance(merge, bool):
        raise ConfigError(f"option `merge_excited` of importer `iemocap` is {merge!r}; expected true or false.")
    files = [file for file in storage.list_files(root) if not _name(file).startswith(".")]  # the release has ._ files
    recordings = [(_name(file)[:-4], file) for file in files if file.lower().endswith(".wav")]
    utterances = {name: file for name, file in recordings if _UTTERANCE.fullmatch(name)}
    label_files = [file for file in files if file.endswith(".txt") and file.split("/")[-2:-1] == ["EmoEvaluation"]]
    if not utterances or not label_files:
        raise DataError(
            f"{root} is not IEMOCAP: found {len(files)} files, among them {len(utterances)} utterances and "
            f"{len(label_files)} label files. Expected SessionN/sentences/wav/<dialog>/<utterance>.wav and "
            "SessionN/dialog/EmoEvaluation/<dialog>.txt: check the corpus's `root`."
        )
    if len(utterances) != sum(1 for name, _ in recordings if _UTTERANCE.fullmatch(name)):
        twice = next(name for name, file in recordings if name in utterances and utterances[name] != file)
        raise DataError(f"{root} holds the utterance {twice} more than once; leave one copy of the release there.")
    labels = _labels(root, label_files)
    for name, file in utterances.items():
        source = storage.join(root, file)
        code = labels.pop(name, None)
        if code is None:
            yield Problem(id=name, source=source, reason="has no label in EmoEvaluation")
        elif code != NO_AGREEMENT:
            yield _clip(name, source, "hap" if merge and code == "exc" else code)
    for name in labels:
        yield Problem(id=name, source=root, reason="has a label in EmoEvaluation but no recording", kind="missing")


def _name(file: str) -> str:
    return file.rpartition("/")[2]


def _labels(root: str, files: list[str]) -> dict[str, str]:
    """Code of each utterance; one that is labelled in two ways gets both, which is no code."""
    labels: dict[str, str] = {}
    for file in files:
        text = storage.read_bytes(storage.join(root, file)).decode("utf-8", errors="replace")
        for match in _LABEL.finditer(text):
            name, code = match["utterance"], match["code"]
            labels[name] = code if labels.get(name, code) == code else f"{labels[name]} and {code}"
    return labels


def _clip(name: str, source: str, code: str) -> Clip | Problem:
    if code not in CODES:
        return Problem(id=name, source=source, reason=f"has label {code!r}, expected one of {', '.join(CODES)}")
    parts = _UTTERANCE.fullmatch(name)
    assert parts is not None, name  # only names that match come here
    session = f"Ses{parts['session']}"
    return Clip(
        id=name,
        source=source,
        emotion=CODES[code],
        language="en",
        speaker=session + parts["gender"],
        session=session,
    )
