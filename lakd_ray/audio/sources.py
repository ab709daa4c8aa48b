"""Where recordings lie: the files of a corpus, and the bytes that a clip's source stands for.

A source is the location of a file, or `<location>.parquet#row=17` (also `.arrow`): a recording embedded in a table, as
Hugging Face `datasets` keep them, in column `audio` or in the one named by `&column=`.
"""

import os
import re
import threading
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lakd_ray import storage
from lakd_ray.errors import ClipError, DataError, StorageError

# Endings of files that are recordings, whether or not they can be decoded here.
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".w64", ".caf"),
    *(".rf64", ".sph", ".nist", ".voc", ".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr", ".3gp"),
)

DEFAULT_AUDIO_COLUMN = "audio"

_SURROGATE_BASE = 0xDC00  # Python's surrogateescape: this plus the byte
_SURROGATES = re.compile("[\udc80-\udcff]")
_PERCENT_ESCAPE = re.compile("%([89A-F][0-9A-F])")

_ROW_SOURCE = re.compile(r"(?P<location>.+\.(?:parquet|arrow))#row=(?P<row>\d+)(?:&column=(?P<column>.+))?")


def list_files(root: str) -> list[str]:
    """All files below a folder but hidden ones, relative to it and sorted. macOS leaves `._x.wav` beside `x.wav`.

    Bytes of a name that are not UTF-8, as archives unpacked in a wrong encoding leave them, appear as `%E8`: Parquet
    and JSON could not hold them. `local_path` turns them back.
    """
    try:
        found = [info.location.removeprefix(f"{root.rstrip('/')}/") for info in storage.list_files(root)]
    except UnicodeDecodeError:
        found = _walk_local_files(root)
    names = (_SURROGATES.sub(lambda byte: f"%{ord(byte[0]) - _SURROGATE_BASE:02X}", file) for file in found)
    return sorted(name for name in names if not name.rpartition("/")[2].startswith("."))


def _walk_local_files(root: str) -> list[str]:
    """Local files, whatever their names; Python spells bytes that are not UTF-8 as lone surrogates."""
    top = storage.resolve_filesystem(root)[1]
    below = (os.path.join(folder, name) for folder, _, names in os.walk(top, followlinks=True) for name in names)
    return [os.path.relpath(file, top) for file in below]


def local_path(source: str) -> str:
    """Where a local recording lies, for Python's own calls."""
    path = storage.resolve_filesystem(source)[1]
    spelt = _PERCENT_ESCAPE.sub(lambda byte: chr(_SURROGATE_BASE + int(byte[1], 16)), path)
    return spelt if spelt != path and not Path(path).exists() and Path(spelt).exists() else path


def has_audio_suffix(file: str) -> bool:
    """Whether a file's name ends like a recording's."""
    return file.lower().endswith(AUDIO_SUFFIXES)


def make_row_source(location: str, row: int, column: str = DEFAULT_AUDIO_COLUMN) -> str:
    """The source of a recording in a row of a Parquet or Arrow file."""
    return f"{location}#row={row}" + (f"&column={column}" if column != DEFAULT_AUDIO_COLUMN else "")


def get_source_file(source: str) -> str:
    """The file that holds a source's recording."""
    found = _ROW_SOURCE.fullmatch(source)
    return found["location"] if found else source


def read_order_key(source: str) -> tuple[str, int]:
    """Sorts sources so that each group of rows of a table is read once."""
    found = _ROW_SOURCE.fullmatch(source)
    return (found["location"], int(found["row"])) if found else (source, 0)


def read_source(source: str) -> bytes:
    """The encoded recording that a source stands for.

    The group of rows that was read last is kept, one per thread: reading row after row takes each group once.

    Raises:
        StorageError: the file is missing or refused.
        DataError: the table is damaged, or has no such row, or no recording there.
    """
    found = _ROW_SOURCE.fullmatch(source)
    if found is None:
        return storage.read_bytes(source) if storage.is_remote(source) else _read_local_file(source)
    location, column = found["location"], found["column"] or DEFAULT_AUDIO_COLUMN
    try:
        value = _column_cache.get_column(location, column).read_value(int(found["row"]))
    except (pa.ArrowInvalid, KeyError) as error:
        raise DataError(f"cannot read {source}: {error}") from None
    except OSError as error:
        raise StorageError(f"cannot read {source}: {error}; check that the file is there and whole") from error
    except IndexError:
        raise DataError(f"{location} has no row {found['row']}; read the corpus again") from None
    return _extract_bytes(value, source, location)


def read_clip_source(source: str) -> bytes:
    """As `read`, where a file that cannot be read is a recording that cannot be used.

    Raises:
        ClipError: the file is `missing` or `unreadable`.
        DataError: as `read`.
    """
    try:
        return read_source(source)
    except StorageError as error:
        kind = "missing" if isinstance(error.__cause__, FileNotFoundError) else "unreadable"
        raise ClipError(str(error), kind) from error


def _read_local_file(source: str) -> bytes:
    path = local_path(source)
    return Path(path).read_bytes() if _SURROGATES.search(path) else storage.read_bytes(source)


def _extract_bytes(value: Any, source: str, location: str) -> bytes:
    """The bytes themselves, else those of the file that the row names."""
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if isinstance(value, bytes):
        content, path = value, None
    if isinstance(content, bytes):
        return content
    if not isinstance(path, str) or not path:
        raise DataError(f"{source} holds no recording")
    there = (
        path if storage.is_remote(path) or Path(path).is_absolute() else storage.join(_parent_folder(location), path)
    )
    return storage.read_bytes(there)


def _parent_folder(location: str) -> str:
    return location[: location.rfind("/") + 1] or "."


class _AudioColumn:
    """A column of a Parquet or Arrow file, of which one group of rows is held."""

    def __init__(self, location: str, column: str) -> None:
        filesystem, path = storage.resolve_filesystem(location)
        opened: Callable[[str], Any] = filesystem.open_input_file
        if location.endswith(".parquet"):
            parquet = pq.ParquetFile(opened(path))
            if column not in parquet.schema_arrow.names:
                raise KeyError(f"no column {column}, found {', '.join(parquet.schema_arrow.names)}")
            sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
            self._read_group: Callable[[int], Any] = lambda index: parquet.read_row_group(index, columns=[column])[
                column
            ]
        else:  # a stream has no index of its batches; mapped into memory, going through it reads nothing
            stream = pa.ipc.open_stream(opened(path) if storage.is_remote(location) else pa.memory_map(path))
            batches = list(stream)
            sizes = [len(batch) for batch in batches]
            self._read_group = lambda index: batches[index].column(column)
        self._group_ends = list(accumulate(sizes))
        self._cached_group = -1
        self._cached_values: Any = None

    def read_value(self, row: int) -> Any:
        """A row's value as a Python object."""
        index = bisect_right(self._group_ends, row)
        if index == len(self._group_ends):
            raise IndexError(row)
        if index != self._cached_group:
            self._cached_values, self._cached_group = self._read_group(index), index
        return self._cached_values[row - (self._group_ends[index - 1] if index else 0)].as_py()


class _ThreadColumnCache(threading.local):
    """The table that this thread read last."""

    _key: tuple[str, str] | None = None
    _column: _AudioColumn

    def get_column(self, location: str, column: str) -> _AudioColumn:
        if self._key != (location, column):
            self._column, self._key = _AudioColumn(location, column), (location, column)
        return self._column


_column_cache = _ThreadColumnCache()
