"""Read FESC, the Finnish Emotional Speech Corpus, nine speakers, from the split files of the paper's reference code.

Each speaker has a folder whose `test.json` contains the utterances of this speaker, and whose `train.json` and
`dev.json` contain those of the others. The nine `test.json` together therefore list all utterances with their speakers;
the other two files are read only to check that. Paths in these files are from the machine that wrote them, so a
recording that does not exist at its path is searched below `audio`. There is no sentence, session or split. License:
granted by its owners on request.

Two public readers of the corpus disagree on the meaning of the label codes, and both exclude code 5. The option
`labels` is therefore required.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakd_ray import storage
from lakd_ray.audio import sources
from lakd_ray.corpora.items import Clip, Excluded, InvalidItem, Item
from lakd_ray.errors import ConfigError, DataError
from lakd_ray.labels import KNOWN_EMOTIONS

EXCLUDED_CODE = "5"
_PUBLISHED_LABEL_MAPS = (
    "{1: anger, 2: happiness, 3: neutral, 4: sadness}",
    "{1: neutral, 2: sadness, 3: happiness, 4: anger}",
)


@dataclass(frozen=True)
class _SplitEntry:
    """The path and the label code of one utterance in a split file."""

    path: str
    code: str


_SplitFile = dict[str, _SplitEntry | str]  # entries by id; a string is the reason why an entry is invalid


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every utterance of the split files, and every recording that they do not name as excluded.

    Args:
        root: the folder that contains the folders of the speakers.
        options: `labels` (required) maps label codes to emotions; `audio` is the folder of the recordings.

    Raises:
        ConfigError: `labels` is missing or names an unknown emotion.
        DataError: there are no split files, or they contradict each other.
    """
    labels = _parse_label_map(options.get("labels"))
    audio = options.get("audio", root)
    if not isinstance(audio, str):
        raise ConfigError(f"option `audio` of importer `fesc` is {audio!r}; expected the folder of the recordings.")
    tests = {
        speaker: _read_split_file(storage.join(root, speaker, "test.json"))
        for speaker in storage.list_folders(root)
        if storage.exists(storage.join(root, speaker, "test.json"))
    }
    if not tests:
        raise DataError(
            f"{root} is not FESC: no folder in it has a test.json. Expected <SPEAKER>/train.json, dev.json and "
            "test.json, one folder per held-out speaker: check the corpus's `root`."
        )
    speakers = _map_utterances_to_speakers(root, tests)
    yield from _check_train_and_dev(root, tests, speakers)
    find_recording = _RecordingFinder(audio)
    for speaker, split in tests.items():
        location = storage.join(root, speaker, "test.json")
        for name, entry in split.items():
            if isinstance(entry, str):
                yield InvalidItem(id=name, source=location, reason=entry)
                continue
            source = find_recording(entry.path, name)
            if entry.code in labels:
                if source is None:
                    reason = f"there is no file {entry.path}, nor exactly one of that name below {audio}"
                    yield InvalidItem(id=name, source=location, reason=reason, kind="missing")
                else:
                    yield Clip(id=name, source=source, emotion=labels[entry.code], language="fi", speaker=speaker)
            elif entry.code == EXCLUDED_CODE:
                yield Excluded(f"label {EXCLUDED_CODE}, which both public readers exclude")
            else:
                reason = f"has label {entry.code!r}, which is not in the option `labels`"
                yield InvalidItem(id=name, source=location, reason=reason)
    yield from (Excluded("not in any split file") for _ in find_recording.list_unmatched())


def _parse_label_map(option: Any) -> dict[str, str]:
    if not isinstance(option, Mapping) or not option:
        raise ConfigError(
            f"importer `fesc` requires the option `labels`, code: emotion; found {option!r}. Public readers of the "
            f"corpus disagree: one has {_PUBLISHED_LABEL_MAPS[0]}, the other {_PUBLISHED_LABEL_MAPS[1]}. To find out "
            "which is right, listen to some recordings of each code, or contact the owners of the corpus."
        )
    wrong = [str(emotion) for emotion in option.values() if str(emotion) not in KNOWN_EMOTIONS]
    if wrong:
        raise ConfigError(
            f"option `labels` of importer `fesc` names {', '.join(wrong)}; expected emotions among "
            f"{', '.join(sorted(KNOWN_EMOTIONS))}."
        )
    return {str(code): str(emotion) for code, emotion in option.items()}


def _read_split_file(location: str) -> _SplitFile:
    content = storage.read_json(location)
    if not isinstance(content, dict):
        raise DataError(f"{location} contains a {type(content).__name__}; expected {{id: {{file_path, label}}}}.")
    split: _SplitFile = {}
    for name, entry in content.items():
        path, code = (entry.get("file_path"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        is_valid = isinstance(path, str) and path and isinstance(code, str | int)
        split[unicodedata.normalize("NFC", name)] = (
            _SplitEntry(str(path), str(code).strip()) if is_valid else f"is {entry!r}, expected file_path and label"
        )
    return split


def _map_utterances_to_speakers(root: str, tests: Mapping[str, _SplitFile]) -> dict[str, str]:
    """Return the speaker of each utterance.

    Raises:
        DataError: an utterance is in the test.json of two speakers.
    """
    speakers: dict[str, str] = {}
    for speaker, split in tests.items():
        for name in split:
            other = speakers.setdefault(name, speaker)
            if other != speaker:
                raise DataError(
                    f"{root}: utterance {name!r} is in the test.json of {other} and of {speaker}; expected only that "
                    "of its speaker. Restore the original split files."
                )
    return speakers


def _check_train_and_dev(
    root: str, tests: Mapping[str, _SplitFile], speakers: Mapping[str, str]
) -> Iterator[InvalidItem]:
    """Check every train.json and dev.json against the test.json files; yield utterances of unknown speakers."""
    unknown: dict[str, str] = {}
    for held_out in tests:
        for part in ("train", "dev"):
            location = storage.join(root, held_out, f"{part}.json")
            for name, entry in _read_split_file(location).items() if storage.exists(location) else ():
                speaker = speakers.get(name)
                if speaker == held_out:
                    raise DataError(
                        f"{location} contains {name!r}, which is also in {held_out}'s test.json; expected no utterance "
                        "of the held-out speaker. Restore the original split files."
                    )
                if speaker is None:
                    unknown.setdefault(name, location)
                elif _has_label_conflict(entry, tests[speaker][name]):
                    raise DataError(
                        f"{location} and {speaker}'s test.json have different labels for {name!r}; expected the same. "
                        "Restore the original split files."
                    )
    for name, location in unknown.items():
        yield InvalidItem(id=name, source=location, reason="is not in any test.json, so its speaker is unknown")


def _has_label_conflict(first: _SplitEntry | str, second: _SplitEntry | str) -> bool:
    return isinstance(first, _SplitEntry) and isinstance(second, _SplitEntry) and first.code != second.code


class _RecordingFinder:
    """Finds recordings by paths that were written on a different machine."""

    def __init__(self, audio_root: str) -> None:
        self._utterance_by_file: dict[str, str] = {}
        self._files_by_name: dict[str, list[str]] = defaultdict(list)
        for file in sources.list_files(audio_root):
            self._files_by_name[_split_path(file)[-1]].append(storage.join(audio_root, file))

    def __call__(self, path: str, utterance: str) -> str | None:
        """Return the path if it exists, else the only file with the longest common end of its path, else None.

        Raises:
            DataError: the same file was found for two utterances, so one of them would have a wrong label.
        """
        source = self._find(path)
        if source is not None and self._utterance_by_file.setdefault(source, utterance) != utterance:
            raise DataError(
                f"{source} was found for {self._utterance_by_file[source]!r} and for {utterance!r} ({path}): the paths "
                "in the split files are ambiguous. Store the recordings in folders as in those paths, or set the "
                "option `audio` to a folder that has such folders."
            )
        return source

    def list_unmatched(self) -> list[str]:
        """Return the recordings that no call has returned."""
        files = (file for same in self._files_by_name.values() for file in same)
        return [file for file in files if sources.has_audio_suffix(file) and file not in self._utterance_by_file]

    def _find(self, path: str) -> str | None:
        if Path(path).is_absolute() and Path(path).is_file():
            return path
        parts = _split_path(path)
        scores = {
            file: _common_suffix_length(_split_path(file), parts) for file in self._files_by_name.get(parts[-1], ())
        }
        best = [file for file, score in scores.items() if score == max(scores.values())]
        return best[0] if len(best) == 1 else None


def _split_path(path: str) -> list[str]:
    return unicodedata.normalize("NFC", path.replace("\\", "/")).split("/")


def _common_suffix_length(first: list[str], second: list[str]) -> int:
    count = 0
    for left, right in zip(reversed(first), reversed(second), strict=False):
        if left != right:
            break
        count += 1
    return count
