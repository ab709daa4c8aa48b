"""Corpora whose file names tell everything. Folder names are not read: they reach users in many encodings."""

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
    """What a file's name tells."""

    emotion: str
    language: str
    speaker: str
    sentence: str | None = None
    session: str | None = None


@dataclass(frozen=True)
class FilenameParser:
    """How a corpus names its recordings."""

    corpus_name: str
    """Its name, for people."""
    pattern: re.Pattern[str]
    """Matches the end of a recording's path, without the ending."""
    expected_format: str
    """The pattern for people, with an example."""

    def iter_items(
        self, root: str, parse_labels: Callable[[FilenameMatch], ParsedName | Excluded | str]
    ) -> Iterator[Item]:
        """Read every recording below a folder.

        Args:
            root: the folder.
            parse_labels: what the parts of a name tell; a text says why it cannot be so.

        Raises:
            DataError: no file below `root` is named like one of the corpus's.
        """
        files = sources.list_files(root)
        found = {file: self._match(file) for file in files if sources.has_audio_suffix(file)}
        if not any(found.values()):
            example = f", for instance {files[0]}" if files else ""
            raise DataError(
                f"{root} is not {self.corpus_name}: found {len(files)} files{example}. Expected recordings named "
                f"{self.expected_format}: check the corpus's `root`."
            )
        for file, parts in found.items():
            source = storage.join(root, file)
            if parts is None:
                name = file.rpartition("/")[2].rpartition(".")[0]
                yield InvalidItem(id=name, source=source, reason=f"is not named {self.expected_format}")
                continue
            name = parts[0].replace("/", "_")
            said = parse_labels(parts)
            if isinstance(said, ParsedName):
                yield Clip(id=name, source=source, **vars(said))
            else:
                yield InvalidItem(id=name, source=source, reason=said) if isinstance(said, str) else said

    def _match(self, file: str) -> FilenameMatch | None:
        """The parts of the name; the pattern may reach into folders, but not begin within a name."""
        path = unicodedata.normalize("NFC", file).rpartition(".")[0]
        starts = [match.end() for match in re.finditer("/", path)] + [0]
        return next((match for start in sorted(starts) if (match := self.pattern.fullmatch(path, start))), None)


def validate_choice(importer: str, option: str, value: object, allowed: tuple[str, ...]) -> str:
    """An option's value if it is one of those that are known.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"option `{option}` of importer `{importer}` is {value!r}; expected {', '.join(allowed)}.")
    return value
