"""FESC: the Finnish Emotional Speech Corpus, nine speakers, by the split files of the paper's reference code.

Each speaker has a folder whose `test.json` holds that speaker's utterances, and whose `train.json` and `dev.json` hold
the others'. All utterances with their speakers are therefore the union of the nine `test.json`; the other two files
are read only to check that. Paths in them come from the machine that wrote them, so a recording that is not there is
looked for below `audio`.

Two public readers of the corpus disagree on what the label codes mean, and both leave out code 5. The meaning must be
given, as option `labels`; nothing is guessed.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakd_ray import storage
from lakd_ray.corpora import recordings
from lakd_ray.corpora.clip import Clip, Item, LeftOut, Problem
from lakd_ray.errors import ConfigError, DataError
from lakd_ray.labels import KNOWN_EMOTIONS

LEFT_OUT = "5"
_PUBLISHED = (
    "{1: anger, 2: happiness, 3: neutral, 4: sadness}",
    "{1: neutral, 2: sadness, 3: happiness, 4: anger}",
)


@dataclass(frozen=True)
class _Entry:
    """One utterance as a split file has it."""

    path: str
    code: str


_Split = dict[str, _Entry | str]  # by id; a text says what is wrong with the entry


def read(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read the folder of the speakers' folders.

    Raises:
        ConfigError: `labels` is missing or names no emotions.
        DataError: there are no split files, or they contradict each other.
    """
    labels = _mapping(options.get("labels"))
    audio = options.get("audio", root)
    if not isinstance(audio, str):
        raise ConfigError(f"option `audio` of importer `fesc` is {audio!r}; expected the folder of the recordings.")
    tests = {
        speaker: _split(storage.join(root, speaker, "test.json"))
        for speaker in storage.list_folders(root)
        if storage.exists(storage.join(root, speaker, "test.json"))
    }
    if not tests:
        raise DataError(
            f"{root} is not FESC: no folder in it has a test.json. Expected <SPEAKER>/train.json, dev.json and "
            "test.json, one folder per held-out speaker: check the corpus's `root`."
        )
    speakers = _speakers(root, tests)
    yield from _check_others(root, tests, speakers)
    find = _Recordings(audio)
    for speaker, split in tests.items():
        where = storage.join(root, speaker, "test.json")
        for name, entry in split.items():
            if isinstance(entry, str):
                yield Problem(id=name, source=where, reason=entry)
                continue
            source = find(entry.path, name)
            if entry.code in labels:
                if source is None:
                    reason = f"there is no file {entry.path}, nor exactly one of that name below {audio}"
                    yield Problem(id=name, source=where, reason=reason, kind="missing")
                else:
                    yield Clip(id=name, source=source, emotion=labels[entry.code], language="fi", speaker=speaker)
            elif entry.code == LEFT_OUT:
                yield LeftOut(f"label {LEFT_OUT}, which both public readers leave out")
            else:
                yield Problem(id=name, source=where, reason=f"has label {entry.code!r}, which `labels` does not name")
    yield from (LeftOut("no split file names it") for _ in find.others())


def _mapping(given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"importer `fesc` needs the option `labels`, code: emotion; found {given!r}. Public readers of the corpus "
            f"disagree: one has {_PUBLISHED[0]}, the other {_PUBLISHED[1]}. Find out which holds for your copy (listen "
            "to some, or ask who gave it to you) and name it."
        )
    wrong = [str(emotion) for emotion in given.values() if str(emotion) not in KNOWN_EMOTIONS]
    if wrong:
        raise ConfigError(
            f"option `labels` of importer `fesc` names {', '.join(wrong)}; expected emotions among "
            f"{', '.join(sorted(KNOWN_EMOTIONS))}."
        )
    return {str(code): str(emotion) for code, emotion in given.items()}


def _split(location: str) -> _Split:
    content = storage.read_json(location)
    if not isinstance(content, dict):
        raise DataError(f"{location} holds {type(content).__name__}; expected {{id: {{file_path, label}}}}.")
    split: _Split = {}
    for name, entry in content.items():
        path, code = (entry.get("file_path"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        given = isinstance(path, str) and path and isinstance(code, str | int)
        split[unicodedata.normalize("NFC", name)] = (
            _Entry(str(path), str(code).strip()) if given else f"is {entry!r}, expected file_path and label"
        )
    return split


def _speakers(root: str, tests: Mapping[str, _Split]) -> dict[str, str]:
    """Who says each utterance."""
    speakers: dict[str, str] = {}
    for speaker, split in tests.items():
        for name in split:
            other = speakers.setdefault(name, speaker)
            if other != speaker:
                raise DataError(
                    f"{root}: utterance {name!r} is in the test.json of {other} and of {speaker}; expected each in one "
                    "only, that of its speaker. Take the split files from their source again."
                )
    return speakers


def _check_others(root: str, tests: Mapping[str, _Split], speakers: Mapping[str, str]) -> Iterator[Problem]:
    """Compare every train.json and dev.json with what the test.json say."""
    unknown: dict[str, str] = {}
    for held_out in tests:
        for part in ("train", "dev"):
            location = storage.join(root, held_out, f"{part}.json")
            for name, entry in _split(location).items() if storage.exists(location) else ():
                speaker = speakers.get(name)
                if speaker == held_out:
                    raise DataError(
                        f"{location} holds {name!r}, which is also in {held_out}'s test.json; a held-out speaker is in "
                        "neither. Take the split files from their source again."
                    )
                if speaker is None:
                    unknown.setdefault(name, location)
                elif _disagree(entry, tests[speaker][name]):
                    raise DataError(
                        f"{location} labels {name!r} otherwise than {speaker}'s test.json does. Take the split files "
                        "from their source again."
                    )
    for name, location in unknown.items():
        yield Problem(id=name, source=location, reason="is in no test.json, so its speaker is not known")


def _disagree(one: _Entry | str, other: _Entry | str) -> bool:
    return isinstance(one, _Entry) and isinstance(other, _Entry) and one.code != other.code


class _Recordings:
    """Finds recordings by the paths that another machine wrote."""

    def __init__(self, audio: str) -> None:
        self._found: dict[str, str] = {}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for file in recordings.files(audio):
            self._by_name[_parts(file)[-1]].append(storage.join(audio, file))

    def __call__(self, path: str, utterance: str) -> str | None:
        """The path itself if it is there, else the one file whose path ends most like it.

        Raises:
            DataError: the same file was found for two utterances, so one of them would carry the other's label.
        """
        source = self._find(path)
        if source is not None and self._found.setdefault(source, utterance) != utterance:
            raise DataError(
                f"{source} was found for {self._found[source]!r} and for {utterance!r} ({path}): the paths in the "
                "split files do not tell the recordings apart. Lay the recordings out as those paths end, or point the "
                "option `audio` at a folder where they are."
            )
        return source

    def others(self) -> list[str]:
        """Recordings that were not asked for."""
        files = (file for same in self._by_name.values() for file in same)
        return [file for file in files if recordings.is_audio(file) and file not in self._found]

    def _find(self, path: str) -> str | None:
        if Path(path).is_absolute() and Path(path).is_file():
            return path
        wanted = _parts(path)
        scores = {file: _shared_tail(_parts(file), wanted) for file in self._by_name.get(wanted[-1], ())}
        best = [file for file, score in scores.items() if score == max(scores.values())]
        return best[0] if len(best) == 1 else None


def _parts(path: str) -> list[str]:
    return unicodedata.normalize("NFC", path.replace("\\", "/")).split("/")


def _shared_tail(one: list[str], other: list[str]) -> int:
    count = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if left != right:
            break
        count += 1
    return count
