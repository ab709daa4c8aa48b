"""Inputs of a bulk prediction: the recordings of a folder or bucket, or the rows of a manifest."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lakd_ray import storage
from lakd_ray.audio import sources
from lakd_ray.corpora import csv_manifest
from lakd_ray.errors import DataError
from lakd_ray.inference.options import LANGUAGE_PATTERN
from lakd_ray.runs import record

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")

_MAX_LISTED = 5  # invalid rows named in a message


@dataclass(frozen=True)
class InputEntry:
    """One recording of a bulk prediction."""

    id: str
    """Its name in the predictions: the manifest's id, else its path as in the folder or manifest."""
    path: str
    """Path or s3:// location."""
    language: str | None
    """Its language; None if the manifest has none."""


@dataclass(frozen=True)
class BulkInputs:
    """All recordings of a bulk prediction, in a reproducible order."""

    entries: list[InputEntry]
    digest: str
    """Hash of all ids, paths and languages, and of the size and version of each file in a listing."""


def find_inputs(location: str) -> BulkInputs:
    """Return the recordings below a folder or s3:// prefix, or those of a manifest (CSV, JSON lines, Parquet).

    A manifest has a column `path` (relative paths refer to its folder), and optionally `id` and `language`.

    Raises:
        DataError: there is no recording, or the manifest is not valid.
        StorageError: the folder or manifest cannot be read.
    """
    if location.lower().endswith(MANIFEST_SUFFIXES):
        entries = list(_read_manifest(location))
        return BulkInputs(entries, record.digest([list(vars(entry).values()) for entry in entries]))
    listed = sorted((name, version) for name, version in _list_folder(location) if sources.has_audio_suffix(name))
    if not listed:
        raise DataError(
            f"{location} holds no recordings: expected a folder or s3://bucket/prefix with audio files "
            f"({', '.join(sources.AUDIO_SUFFIXES[:4])} ...), or a manifest (*{', *'.join(MANIFEST_SUFFIXES)})"
        )
    return BulkInputs(
        [InputEntry(name, storage.join(location, name), None) for name, _ in listed], record.digest([location, listed])
    )


def _list_folder(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the names of the files below a folder, without hidden ones, each with its size and version."""
    try:
        for info in storage.list_files(folder):
            if not info.name.startswith("."):
                yield info.location.removeprefix(f"{folder.rstrip('/')}/"), f"{info.size}-{info.version}"
    except UnicodeDecodeError:  # Arrow cannot list names in other encodings
        yield from ((name, "") for name in sources.list_files(folder))


def _read_manifest(location: str) -> Iterator[InputEntry]:
    rows = _read_rows(location)
    folder = location[: location.rfind("/") + 1] or "."
    seen: dict[str, str] = {}
    problems: list[str] = []
    for label, cells in rows:
        problem = cells if isinstance(cells, str) else _row_error(cells)
        if problem is None and isinstance(cells, dict):
            entry = _make_entry(cells, folder)
            if entry.id not in seen:
                seen[entry.id] = label
                yield entry
                continue
            problem = f"has the id {entry.id!r} of {seen[entry.id]}; give each row its own id in a column `id`"
        problems.append(f"{label} {problem}")
    if problems:
        more = f"\n  and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        shown = "\n  ".join(problems[:_MAX_LISTED])
        raise DataError(f"{location}: rows that cannot be used. Correct or delete them:\n  {shown}{more}")
    if not seen:
        raise DataError(f"{location} has no rows; expected one row per recording")


def _read_rows(location: str) -> list[tuple[str, dict[str, Any] | str]]:
    """Return the rows with a label for messages; an error message in place of a row that cannot be parsed."""
    if location.lower().endswith(".parquet"):
        return _read_parquet_rows(location)
    lines, columns = csv_manifest.read_lines(location)
    _check_columns(location, columns)
    return [(f"line {number}", dict(cells) if not isinstance(cells, str) else cells) for number, cells in lines]


def _read_parquet_rows(location: str) -> list[tuple[str, dict[str, Any] | str]]:
    filesystem, path = storage.resolve_filesystem(location)
    try:
        columns = pq.read_schema(path, filesystem=filesystem).names
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"cannot read {location} as a Parquet manifest: {error}") from None
    _check_columns(location, columns)
    used = [name for name in ("path", "id", "language") if name in columns]
    rows = storage.read_table(location, columns=used).to_pylist()
    return [(f"row {number}", cells) for number, cells in enumerate(rows)]


def _check_columns(location: str, columns: list[str]) -> None:
    if "path" not in columns:
        raise DataError(f"{location} has columns {', '.join(columns) or '(none)'}; expected one named path")


def _row_error(cells: dict[str, Any]) -> str | None:
    path, language = cells.get("path"), cells.get("language")
    if not isinstance(path, str) or not path.strip():
        return f"has the path {path!r}, expected the path of a recording"
    if language not in (None, "") and not (
        isinstance(language, str) and re.fullmatch(LANGUAGE_PATTERN, language.strip())
    ):
        return f"has the language {language!r}, expected a code of two or three letters such as en, or nothing"
    return None


def _make_entry(cells: dict[str, Any], folder: str) -> InputEntry:
    path, row_id, language = str(cells["path"]), cells.get("id"), str(cells.get("language") or "").strip()
    location = path if storage.is_remote(path) or Path(path).is_absolute() else storage.join(folder, path)
    return InputEntry(path if row_id in (None, "") else str(row_id), location, language or None)
