"""Read corpora whose file names contain all labels.

Folder names are ignored where possible, since archives are often unpacked with a wrong encoding.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lakd_ray import storage
from lakd_ray.audio import sources
from lakd_ray.corpora.items import Clip, Excluded, InvalidItem, Item
from lakd_ray.errors import ConfigError, DataError

FilenameMatch = re.Match[str]


@dataclass(frozen=True)
class ParsedName:
    """The labels that a file name contains."""

    emotion: str
    language: str
    speaker: str
    sentence: str | None = None
    session: str | None = None


@dataclass(frozen=True)
class FilenameParser:
    """The naming scheme of a corpus and the reader for it."""

    corpus_name: str
    """Name of the corpus in error messages."""
    pattern: re.Pattern[str]
    """Matches the end of a recording's path without its suffix."""
    expected_format: str
    """Description of the pattern with an example, for error messages."""

    def iter_items(
        self, root: str, parse_labels: Callable[[FilenameMatch], ParsedName | Excluded | str]
    ) -> Iterator[Item]:
        """Yield an item for every recording below a folder.

        Args:
            root: the folder.
            parse_labels: converts the match of a name to labels; a string is the reason why the name is invalid.

        Raises:
            DataError: the name of no file below `root` matches the pattern.
        """
        files = sources.list_files(root)
        matches = {file: self._match(file) for file in files if sources.has_audio_suffix(file)}
        if not any(matches.values()):
            example = f", for instance {files[0]}" if files else ""
            raise DataError(
                f"{root} is not {self.corpus_name}: found {len(files)} files{example}. Expected recordings named "
                f"{self.expected_format}: check the corpus's `root`."
            )
        for file, match in matches.items():
            source = storage.join(root, file)
            if match is None:
                name = file.rpartition("/")[2].rpartition(".")[0]
                yield InvalidItem(id=name, source=source, reason=f"is not named {self.expected_format}")
                continue
            name = match[0].replace("/", "_")
            labels = parse_labels(match)
            if isinstance(labels, ParsedName):
                yield Clip(id=name, source=source, **vars(labels))
            else:
                yield InvalidItem(id=name, source=source, reason=labels) if isinstance(labels, str) else labels

    def _match(self, file: str) -> FilenameMatch | None:
        """Match the pattern against the end of a path; it may span folders but must start at the start of a name."""
        path = unicodedata.normalize("NFC", file).rpartition(".")[0]
        starts = [match.end() for match in re.finditer("/", path)] + [0]
        return next((match for start in sorted(starts) if (match := self.pattern.fullmatch(path, start))), None)


def validate_choice(importer: str, option: str, value: object, allowed: tuple[str, ...]) -> str:
    """Return the value of an option if it is one of the allowed values.

    Raises:
        ConfigError: the value is not allowed.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"option `{option}` of importer `{importer}` is {value!r}; expected {', '.join(allowed)}.")
    return value
