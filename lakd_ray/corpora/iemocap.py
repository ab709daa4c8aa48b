"""Read IEMOCAP, scripted and improvised dialogs in English, ten speakers in five sessions.

Utterances are in SessionN/sentences/wav, labels in SessionN/dialog/EmoEvaluation; speaker and session come from the
name, the sentence from the transcriptions where they exist, there is no split. License: granted by its owner on
request, no redistribution. Source: https://sail.usc.edu/iemocap/.

Most papers use neutral, happiness with excitement, anger and sadness (5,531 utterances); without excitement there are
4,490. Option `merge_excited` chooses between the two. Utterances on which the annotators did not agree (`xxx`) are
excluded.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray import storage
from lakd_ray.audio import sources
from lakd_ray.corpora.items import Clip, Excluded, InvalidItem, Item
from lakd_ray.errors import ConfigError, DataError

EMOTION_BY_CODE = {
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

# The letter after the session is the speaker whose motion was captured in the dialog; the last letter is the speaker
# of the utterance.
_UTTERANCE_NAME = re.compile(r"Ses(?P<session>\d\d)[FM]_\w+_(?P<gender>[FM])[^_]*")
_LABEL_LINE = re.compile(r"\[[\d.]+ - [\d.]+\]\t(?P<utterance>\S+)\t(?P<code>\w+)\t\[")
_TRANSCRIPT_LINE = re.compile(r"^(?P<utterance>\w+) \[[\d.]+-[\d.]+\]:(?P<text>.+)$", re.MULTILINE)


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every utterance, every label without an utterance, and other recordings as invalid items.

    Args:
        root: the release folder, or any folder above it.
        options: `merge_excited`, true to count excitement as happiness.

    Raises:
        ConfigError: `merge_excited` is neither true nor false.
        DataError: there are no utterances or no labels below `root`, or an utterance occurs twice.
    """
    merge = options.get("merge_excited", False)
    if not isinstance(merge, bool):
        raise ConfigError(f"option `merge_excited` of importer `iemocap` is {merge!r}; expected true or false.")
    files = sources.list_files(root)
    recordings = [(_file_stem(file), file) for file in files if sources.has_audio_suffix(file)]
    utterances = _find_utterances(root, files, recordings)
    for name, file in recordings:
        if name not in utterances and "dialog" not in file.split("/"):  # "dialog" has recordings of complete dialogs
            yield InvalidItem(id=name, source=storage.join(root, file), reason="is not named like an utterance")
    labels = _read_labels(root, _find_label_files(files))
    texts = _read_transcripts(root, files)
    for name, file in utterances.items():
        source = storage.join(root, file)
        code, _ = labels.pop(name, (None, ""))
        if code is None:
            yield InvalidItem(id=name, source=source, reason="has no label in EmoEvaluation")
        elif code == NO_AGREEMENT:
            yield Excluded(f"the annotators did not agree ({NO_AGREEMENT})")
        else:
            yield _make_clip(name, source, "hap" if merge and code == "exc" else code, texts.get(name))
    for name, (_, file) in labels.items():
        reason = "has a label in EmoEvaluation but no recording"
        yield InvalidItem(id=name, source=storage.join(root, file), reason=reason, kind="missing")


def _find_label_files(files: list[str]) -> list[str]:
    return [file for file in files if file.endswith(".txt") and file.split("/")[-2:-1] == ["EmoEvaluation"]]


def _find_utterances(root: str, files: list[str], recordings: list[tuple[str, str]]) -> dict[str, str]:
    """Return the utterances by name.

    Raises:
        DataError: there are no utterances or no label files, or an utterance occurs twice.
    """
    utterances = {name: file for name, file in recordings if _UTTERANCE_NAME.fullmatch(name)}
    label_files = _find_label_files(files)
    if not utterances or not label_files:
        raise DataError(
            f"{root} is not IEMOCAP: found {len(files)} files, among them {len(utterances)} utterances and "
            f"{len(label_files)} label files. Expected SessionN/sentences/wav/<dialog>/<utterance>.wav and "
            "SessionN/dialog/EmoEvaluation/<dialog>.txt: check the corpus's `root`."
        )
    if len(utterances) != sum(1 for name, _ in recordings if _UTTERANCE_NAME.fullmatch(name)):
        duplicate = next(name for name, file in recordings if name in utterances and utterances[name] != file)
        raise DataError(
            f"{root} contains the utterance {duplicate} more than once; leave one copy of the release in it."
        )
    return utterances


def _file_stem(file: str) -> str:
    return file.rpartition("/")[2].rpartition(".")[0]


def _read_labels(root: str, files: list[str]) -> dict[str, tuple[str, str]]:
    """Return the code and the label file of each utterance; conflicting labels give an invalid code, `A and B`."""
    labels: dict[str, tuple[str, str]] = {}
    for file in files:
        text = storage.read_bytes(storage.join(root, file)).decode("utf-8", errors="replace")
        for match in _LABEL_LINE.finditer(text):
            name, code = match["utterance"], match["code"]
            previous, _ = labels.get(name, (code, file))
            labels[name] = (code if previous == code else f"{previous} and {code}", file)
    return labels


def _read_transcripts(root: str, files: list[str]) -> dict[str, str]:
    """Return the texts by utterance, empty if the transcriptions of the release are missing."""
    texts: dict[str, str] = {}
    for file in files:
        if file.endswith(".txt") and file.split("/")[-2:-1] == ["transcriptions"]:
            text = storage.read_bytes(storage.join(root, file)).decode("utf-8", errors="replace")
            texts |= {match["utterance"]: match["text"].strip() for match in _TRANSCRIPT_LINE.finditer(text)}
    return texts


def _make_clip(name: str, source: str, code: str, sentence: str | None) -> Clip | InvalidItem:
    if code not in EMOTION_BY_CODE:
        return InvalidItem(
            id=name, source=source, reason=f"has label {code!r}, expected one of {', '.join(EMOTION_BY_CODE)}"
        )
    parts = _UTTERANCE_NAME.fullmatch(name)
    assert parts is not None, name  # `_find_utterances` selects names that match
    session = f"Ses{parts['session']}"
    return Clip(
        id=name,
        source=source,
        emotion=EMOTION_BY_CODE[code],
        language="en",
        speaker=session + parts["gender"],
        session=session,
        sentence=sentence,
    )
