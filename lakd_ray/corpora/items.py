"""Define the types that importers yield: labeled clips, invalid files or rows, and recordings excluded on purpose."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lakd_ray.labels import KNOWN_EMOTIONS


@dataclass(frozen=True)
class Clip:
    """One recording with the labels of its corpus; it is not decoded yet."""

    id: str
    """Unique within the corpus."""
    source: str
    """Path or s3:// location of the recording; the suffix `#row=N` refers to a row of a Parquet or Arrow file."""
    emotion: str
    """Canonical emotion where the importer knows it, else the corpus's own name or code."""
    language: str
    """ISO 639 code."""
    speaker: str
    """Name of the speaker in the corpus; unique within it."""
    session: str | None = None
    sentence: str | None = None
    """Identifies the spoken text, where the corpus has it."""
    split: str | None = None
    """train, dev or test as given by the corpus."""
    start: float | None = None
    """Start of the clip in the recording in seconds; None: the start of the recording."""
    end: float | None = None
    """End of the clip in the recording in seconds; None: the end of the recording."""


@dataclass(frozen=True)
class InvalidItem:
    """A file without a label, a label without a file, or a row that cannot be parsed."""

    id: str
    source: str
    reason: str
    kind: str = "unlabeled"
    """One of `lakd_ray.data.schema.QUARANTINE_KINDS`; `missing` for a label without a file."""


@dataclass(frozen=True)
class Excluded:
    """A valid recording that is excluded on purpose: it has no emotion, or an option excludes it."""

    reason: str
    """Excluded recordings are counted by this text, so it does not name the recording."""


Item = Clip | InvalidItem | Excluded

# Reads a corpus folder or manifest, given its root and options. Raises DataError if the corpus cannot be read.
Importer = Callable[[str, Mapping[str, Any]], Iterator[Item]]

_SPLIT_ALIASES = {"training": "train", "validation": "dev", "valid": "dev", "val": "dev", "development": "dev"}
_SPLIT_ALIASES |= {"testing": "test"}


def normalize_emotion(name: str) -> str:
    """Return a canonical emotion in lower case, and any other name unchanged."""
    return name.lower() if name.lower() in KNOWN_EMOTIONS else name


def normalize_split(name: str) -> str:
    """Return train, dev or test for their common aliases, and any other name in lower case."""
    split = name.strip().lower()
    return _SPLIT_ALIASES.get(split, split)
