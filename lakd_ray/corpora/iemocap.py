"""IEMOCAP: acted and improvised dialogs in English, ten speakers in five sessions.

Most papers use neutral, happiness with excitement, anger and sadness (5,531 utterances); without excitement it is
4,490. Which of the two a result stands for is the option `merge_excited`. Utterances on which the annotators did not
agree (`xxx`) carry no label and are left out.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray import storage
from lakd_ray.corpora import recordings
from lakd_ray.corpora.clip import Clip, Item, LeftOut, Problem
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
_TEXT = re.compile(r"^(?P<utterance>\w+) \[[\d.]+-[\d.]+\]:(?P<text>.+)$", re.MULTILINE)


def read(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read the release folder, or any folder above it.

    Raises:
        ConfigError: `merge_excited` is neither true nor false.
        DataError: there are no utterances or no labels below `root`.
    """
    merge = options.get("merge_excited", False)
    if not isinstance(merge, bool):
        raise ConfigError(f"option `merge_excited` of importer `iemocap` is {merge!r}; expected true or false.")
    files = recordings.files(root)
    spoken = [(_name(file), file) for file in files if recordings.is_audio(file)]
    utterances = {name: file for name, file in spoken if _UTTERANCE.fullmatch(name)}
    label_files = [file for file in files if file.endswith(".txt") and file.split("/")[-2:-1] == ["EmoEvaluation"]]
    if not utterances or not label_files:
        raise DataError(
            f"{root} is not IEMOCAP: found {len(files)} files, among them {len(utterances)} utterances and "
            f"{len(label_files)} label files. Expected SessionN/sentences/wav/<dialog>/<utterance>.wav and "
            "SessionN/dialog/EmoEvaluation/<dialog>.txt: check the corpus's `root`."
        )
    if len(utterances) != sum(1 for name, _ in spoken if _UTTERANCE.fullmatch(name)):
        twice = next(name for name, file in spoken if name in utterances and utterances[name] != file)
        raise DataError(f"{root} holds the utterance {twice} more than once; leave one copy of the release there.")
    for name, file in spoken:
        if name not in utterances and "dialog" not in file.split("/"):  # there lie the dialogs as a whole
            yield Problem(id=name, source=storage.join(root, file), reason="is not named like an utterance")
    labels = _labels(root, label_files)
    texts = _texts(root, files)
    for name, file in utterances.items():
        source = storage.join(root, file)
        code, _ = labels.pop(name, (None, ""))
        if code is None:
            yield Problem(id=name, source=source, reason="has no label in EmoEvaluation")
        elif code == NO_AGREEMENT:
            yield LeftOut(f"the annotators did not agree ({NO_AGREEMENT})")
        else:
            yield _clip(name, source, "hap" if merge and code == "exc" else code, texts.get(name))
    for name, (_, file) in labels.items():
        reason = "has a label in EmoEvaluation but no recording"
        yield Problem(id=name, source=storage.join(root, file), reason=reason, kind="missing")


def _name(file: str) -> str:
    return file.rpartition("/")[2].rpartition(".")[0]


def _labels(root: str, files: list[str]) -> dict[str, tuple[str, str]]:
    """Code of each utterance and its file; one that is labelled in two ways gets both codes, which is no code."""
    labels: dict[str, tuple[str, str]] = {}
    for file in files:
        text = storage.read_bytes(storage.join(root, file)).decode("utf-8", errors="replace")
        for match in _LABEL.finditer(text):
            name, code = match["utterance"], match["code"]
            other, _ = labels.get(name, (code, file))
            labels[name] = (code if other == code else f"{other} and {code}", file)
    return labels


def _texts(root: str, files: list[str]) -> dict[str, str]:
    """What was said, where the release's transcriptions are there."""
    texts: dict[str, str] = {}
    for file in files:
        if file.endswith(".txt") and file.split("/")[-2:-1] == ["transcriptions"]:
            text = storage.read_bytes(storage.join(root, file)).decode("utf-8", errors="replace")
            texts |= {match["utterance"]: match["text"].strip() for match in _TEXT.finditer(text)}
    return texts


def _clip(name: str, source: str, code: str, sentence: str | None) -> Clip | Problem:
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
        sentence=sentence,
    )
