"""What an importer yields: a clip with its labels, a problem with a file or row, or what it leaves out on purpose."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lakd_ray.labels import KNOWN_EMOTIONS


@dataclass(frozen=True)
class Clip:
    """One recording as its corpus describes it. Nothing is decoded yet."""

    id: str
    """Unique within the corpus."""
    source: str
    """Path or s3:// location of the recording; `#row=N` behind it is a row of a Parquet or Arrow file."""
    emotion: str
    """The corpus's own name or code, already spelt as a canonical emotion where the importer knows it."""
    language: str
    """ISO 639 code."""
    speaker: str
    """As named in the corpus; unique within it."""
    session: str | None = None
    sentence: str | None = None
    """Identifies what was said, where the corpus tells."""
    split: str | None = None
    """train, dev or test as given by the corpus."""
    start: float | None = None
    """Seconds at which the clip begins in the recording; its beginning if absent."""
    end: float | None = None
    """Seconds at which the clip ends in the recording; its end if absent."""


@dataclass(frozen=True)
class InvalidItem:
    """A file without a label, a label without a file, a row that cannot be understood."""

    id: str
    source: str
    reason: str
    kind: str = "unlabeled"
    """One of `lakd_ray.data.schema.QUARANTINE_KINDS`; `missing` where there is a label and no file."""


@dataclass(frozen=True)
class Excluded:
    """A recording that is in order and left out on purpose: it has no emotion, or an option does not want it."""

    reason: str
    """The same for all that are left out alike: they are counted by it."""


Item = Clip | InvalidItem | Excluded

# Reads a corpus folder or manifest. Raises DataError if the whole of it cannot be read.
Importer = Callable[[str, Mapping[str, Any]], Iterator[Item]]

_SPLIT_ALIASES = {"training": "train", "validation": "dev", "valid": "dev", "val": "dev", "development": "dev"}
_SPLIT_ALIASES |= {"testing": "test"}


def normalize_emotion(name: str) -> str:
    """A canonical emotion in lower case; any other name as it is."""
    return name.lower() if name.lower() in KNOWN_EMOTIONS else name


def normalize_split(name: str) -> str:
    """train, dev or test under its usual other names; any other name as it is."""
    plain = name.strip().lower()
    return _SPLIT_ALIASES.get(plain, plain)
