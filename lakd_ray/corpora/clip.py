"""What an importer yields: a clip with its labels, or a problem with a file or row."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Clip:
    """One recording as its corpus describes it. Nothing is decoded yet."""

    id: str
    """Unique within the corpus."""
    source: str
    """Path or s3:// location of the recording."""
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
    """Seconds; with `end`, the clip is a part of the recording."""
    end: float | None = None


@dataclass(frozen=True)
class Problem:
    """A file without a label, a label without a file, a row that cannot be understood."""

    id: str
    source: str
    reason: str
    kind: str = "unlabelled"
    """One of `lakd_ray.schema.KINDS`; `missing` where there is a label and no file."""


# Reads a corpus folder or manifest. Raises DataError if the whole of it cannot be read.
Importer = Callable[[str, Mapping[str, Any]], Iterator[Clip | Problem]]
