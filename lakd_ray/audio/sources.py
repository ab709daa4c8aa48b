"""List the files of a corpus and read the recording that a clip's source refers to.

A source is the location of a file, or `<location>.parquet#row=17` (also `.arrow`): a recording embedded in a table, as
Hugging Face `datasets` stores it, in the column `audio` or in the one given by `&column=`.
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

# Suffixes of files that are recordings, including formats that are not supported.
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".w64", ".caf"),
    *(".rf64", ".sph", ".nist", ".voc", ".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr", ".3gp"),
)

DEFAULT_AUDIO_COLUMN = "audio"

_SURROGATE_BASE = 0xDC00  # Python's surrogateescape represents an undecodable byte as this value plus the byte
_SURROGATES = re.compile("[\udc80-\udcff]")
_PERCENT_ESCAPE = re.compile("%([89A-F][0-9A-F])")

_ROW_SOURCE = re.compile(r"(?P<location>.+\.(?:parquet|arrow))#row=(?P<row>\d+)(?:&column=(?P<column>.+))?")


def list_files(root: str) -> list[str]:
    """List all files below a folder, relative to it and sorted, without hidden ones (macOS adds `._x.wav` to `x.wav`).

    Bytes of a name that are not UTF-8, which result from unpacking an archive in a wrong encoding, are escaped as
    `%E8`, because Parquet and JSON cannot store them. `local_path` reverses that.
    """
    try:
        files = [info.location.removeprefix(f"{root.rstrip('/')}/") for info in storage.list_files(root)]
    except UnicodeDecodeError:
        files = _walk_local_files(root)
    names = (_SURROGATES.sub(lambda byte: f"%{ord(byte[0]) - _SURROGATE_BASE:02X}", file) for file in files)
    return sorted(name for name in names if not name.rpartition("/")[2].startswith("."))


def _walk_local_files(root: str) -> list[str]:
    """List local files; bytes of a name that are not UTF-8 become lone surrogates."""
    top = storage.resolve_filesystem(root)[1]
    return [os.path.relpath(file.path, top) for file in storage.walk_files(top)]


def local_path(source: str) -> str:
    """Return the path of a local recording for use with Python's own file functions."""
    path = storage.resolve_filesystem(source)[1]
    unescaped = _PERCENT_ESCAPE.sub(lambda byte: chr(_SURROGATE_BASE + int(byte[1], 16)), path)
    return unescaped if unescaped != path and not Path(path).exists() and Path(unescaped).exists() else path


def has_audio_suffix(file: str) -> bool:
    """Return whether the suffix of a file is that of a recording."""
    return file.lower().endswith(AUDIO_SUFFIXES)


def make_row_source(location: str, row: int, column: str = DEFAULT_AUDIO_COLUMN) -> str:
    """Return the source of a recording in a row of a Parquet or Arrow file."""
    return f"{location}#row={row}" + (f"&column={column}" if column != DEFAULT_AUDIO_COLUMN else "")


def get_source_file(source: str) -> str:
    """Return the location of the file that contains a source's recording."""
    match = _ROW_SOURCE.fullmatch(source)
    return match["location"] if match else source


def read_order_key(source: str) -> tuple[str, int]:
    """Return a sort key for sources; in its order each row group of a table is read once."""
    match = _ROW_SOURCE.fullmatch(source)
    return (match["location"], int(match["row"])) if match else (source, 0)


def read_source(source: str) -> bytes:
    """Read the encoded recording of a source.

    Each thread caches the row group that it read last, so reading rows in order reads each group once.

    Raises:
        StorageError: the file is missing or access is denied.
        DataError: the table is damaged, or has no such row or no recording in it.
    """
    match = _ROW_SOURCE.fullmatch(source)
    if match is None:
        return storage.read_bytes(source) if storage.is_remote(source) else _read_local_file(source)
    location, column = match["location"], match["column"] or DEFAULT_AUDIO_COLUMN
    try:
        value = _column_cache.get_column(location, column).read_value(int(match["row"]))
    except (pa.ArrowInvalid, KeyError) as error:
        raise DataError(f"cannot read {source}: {error}") from None
    except OSError as error:
        raise StorageError(f"cannot read {source}: {error}; check that the file exists and is intact") from error
    except IndexError:
        raise DataError(f"{location} has no row {match['row']}; read the corpus again") from None
    return _extract_bytes(value, source, location)


def read_clip_source(source: str) -> bytes:
    """Read the recording of a clip; a file that cannot be read is an error of the clip and not of the run.

    Raises:
        ClipError: the file is `missing` or `unreadable`.
        DataError: as for `read_source`.
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
    """Return the bytes embedded in the row, else those of the file that the row names, below the table's folder."""
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if isinstance(value, bytes):
        content, path = value, None
    if isinstance(content, bytes):
        return content
    if not isinstance(path, str) or not path:
        raise DataError(f"{source} contains no recording")
    folder = _parent_folder(location)
    return storage.read_bytes(storage.confine(folder, path.removeprefix(folder), allow_links=True))


def _parent_folder(location: str) -> str:
    return location[: location.rfind("/") + 1] or "."


class _AudioColumn:
    """A column of a Parquet or Arrow file with its last row group cached."""

    def __init__(self, location: str, column: str) -> None:
        filesystem, path = storage.resolve_filesystem(location)
        open_file: Callable[[str], Any] = filesystem.open_input_file
        if location.endswith(".parquet"):
            parquet = pq.ParquetFile(open_file(path))
            if column not in parquet.schema_arrow.names:
                raise KeyError(f"no column {column}, found {', '.join(parquet.schema_arrow.names)}")
            sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
            self._read_group: Callable[[int], Any] = lambda index: parquet.read_row_group(index, [column])[column]
        else:  # an Arrow stream has no index of its batches; iterating over a memory map reads only their headers
            stream = pa.ipc.open_stream(open_file(path) if storage.is_remote(location) else pa.memory_map(path))
            batches = list(stream)
            sizes = [len(batch) for batch in batches]
            self._read_group = lambda index: batches[index].column(column)
        self._group_ends = list(accumulate(sizes))
        self._cached_group = -1
        self._cached_values: Any = None

    def read_value(self, row: int) -> Any:
        """Return the value of a row as a Python object."""
        index = bisect_right(self._group_ends, row)
        if index == len(self._group_ends):
            raise IndexError(row)
        if index != self._cached_group:
            self._cached_values, self._cached_group = self._read_group(index), index
        return self._cached_values[row - (self._group_ends[index - 1] if index else 0)].as_py()


class _ThreadColumnCache(threading.local):
    """The column that the current thread read last."""

    _key: tuple[str, str] | None = None
    _column: _AudioColumn

    def get_column(self, location: str, column: str) -> _AudioColumn:
        if self._key != (location, column):
            self._column, self._key = _AudioColumn(location, column), (location, column)
        return self._column


_column_cache = _ThreadColumnCache()
