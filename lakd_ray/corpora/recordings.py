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
AUDIO = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".w64", ".caf"),
    *(".rf64", ".sph", ".nist", ".voc", ".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr", ".3gp"),
)

AUDIO_COLUMN = "audio"

_ESCAPED = 0xDC00  # Python's surrogateescape: this plus the byte
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_QUOTED = re.compile("%([89A-F][0-9A-F])")

_EMBEDDED = re.compile(r"(?P<location>.+\.(?:parquet|arrow))#row=(?P<row>\d+)(?:&column=(?P<column>.+))?")


def files(root: str) -> list[str]:
    """All files below a folder but hidden ones, relative to it and sorted. macOS leaves `._x.wav` beside `x.wav`.

    Bytes of a name that are not UTF-8, as archives unpacked in a wrong encoding leave them, appear as `%E8`: Parquet
    and JSON could not hold them. `local_path` turns them back.
    """
    try:
        found = [info.location.removeprefix(f"{root.rstrip('/')}/") for info in storage.list_files(root)]
    except UnicodeDecodeError:
        found = _walk(root)
    names = (_NOT_UTF8.sub(lambda byte: f"%{ord(byte[0]) - _ESCAPED:02X}", file) for file in found)
    return sorted(name for name in names if not name.rpartition("/")[2].startswith("."))


def _walk(root: str) -> list[str]:
    """Local files, whatever their names; Python spells bytes that are not UTF-8 as lone surrogates."""
    top = storage.resolve(root)[1]
    below = (os.path.join(folder, name) for folder, _, names in os.walk(top, followlinks=True) for name in names)
    return [os.path.relpath(file, top) for file in below]


def local_path(source: str) -> str:
    """Where a local recording lies, for Python's own calls."""
    path = storage.resolve(source)[1]
    spelt = _QUOTED.sub(lambda byte: chr(_ESCAPED + int(byte[1], 16)), path)
    return spelt if spelt != path and not Path(path).exists() and Path(spelt).exists() else path


def is_audio(file: str) -> bool:
    """Whether a file's name ends like a recording's."""
    return file.lower().endswith(AUDIO)


def embedded(location: str, row: int, column: str = AUDIO_COLUMN) -> str:
    """The source of a recording in a row of a Parquet or Arrow file."""
    return f"{location}#row={row}" + (f"&column={column}" if column != AUDIO_COLUMN else "")


def file_of(source: str) -> str:
    """The file that holds a source's recording."""
    found = _EMBEDDED.fullmatch(source)
    return found["location"] if found else source


def reading_order(source: str) -> tuple[str, int]:
    """Sorts sources so that each group of rows of a table is read once."""
    found = _EMBEDDED.fullmatch(source)
    return (found["location"], int(found["row"])) if found else (source, 0)


def read(source: str) -> bytes:
    """The encoded recording that a source stands for.

    The group of rows that was read last is kept, one per thread: reading row after row takes each group once.

    Raises:
        StorageError: the file is missing or refused.
        DataError: the table is damaged, or has no such row, or no recording there.
    """
    found = _EMBEDDED.fullmatch(source)
    if found is None:
        return storage.read_bytes(source) if storage.is_remote(source) else _read_local(source)
    location, column = found["location"], found["column"] or AUDIO_COLUMN
    try:
        value = _last.table(location, column).value(int(found["row"]))
    except (pa.ArrowInvalid, KeyError) as error:
        raise DataError(f"cannot read {source}: {error}") from None
    except OSError as error:
        raise StorageError(f"cannot read {source}: {error}; check that the file is there and whole") from error
    except IndexError:
        raise DataError(f"{location} has no row {found['row']}; read the corpus again") from None
    return _content(value, source, location)


def content(source: str) -> bytes:
    """As `read`, where a file that cannot be read is a recording that cannot be used.

    Raises:
        ClipError: the file is `missing` or `unreadable`.
        DataError: as `read`.
    """
    try:
        return read(source)
    except StorageError as error:
        kind = "missing" if isinstance(error.__cause__, FileNotFoundError) else "unreadable"
        raise ClipError(str(error), kind) from error


def _read_local(source: str) -> bytes:
    path = local_path(source)
    return Path(path).read_bytes() if _NOT_UTF8.search(path) else storage.read_bytes(source)


def _content(value: Any, source: str, location: str) -> bytes:
    """The bytes themselves, else those of the file that the row names."""
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if isinstance(value, bytes):
        content, path = value, None
    if isinstance(content, bytes):
        return content
    if not isinstance(path, str) or not path:
        raise DataError(f"{source} holds no recording")
    there = path if storage.is_remote(path) or Path(path).is_absolute() else storage.join(_folder(location), path)
    return storage.read_bytes(there)


def _folder(location: str) -> str:
    return location[: location.rfind("/") + 1] or "."


class _Table:
    """A column of a Parquet or Arrow file, of which one group of rows is held."""

    def __init__(self, location: str, column: str) -> None:
        filesystem, path = storage.resolve(location)
        opened: Callable[[str], Any] = filesystem.open_input_file
        if location.endswith(".parquet"):
            parquet = pq.ParquetFile(opened(path))
            if column not in parquet.schema_arrow.names:
                raise KeyError(f"no column {column}, found {', '.join(parquet.schema_arrow.names)}")
            sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
            self._read: Callable[[int], Any] = lambda index: parquet.read_row_group(index, columns=[column])[column]
        else:  # a stream has no index of its batches; mapped into memory, going through it reads nothing
            stream = pa.ipc.open_stream(opened(path) if storage.is_remote(location) else pa.memory_map(path))
            batches = list(stream)
            sizes = [len(batch) for batch in batches]
            self._read = lambda index: batches[index].column(column)
        self._ends = list(accumulate(sizes))
        self._held = -1
        self._values: Any = None

    def value(self, row: int) -> Any:
        """A row's value as a Python object."""
        index = bisect_right(self._ends, row)
        if index == len(self._ends):
            raise IndexError(row)
        if index != self._held:
            self._values, self._held = self._read(index), index
        return self._values[row - (self._ends[index - 1] if index else 0)].as_py()


class _Last(threading.local):
    """The table that this thread read last."""

    _of: tuple[str, str] | None = None
    _table: _Table

    def table(self, location: str, column: str) -> _Table:
        if self._of != (location, column):
            self._table, self._of = _Table(location, column), (location, column)
        return self._table


_last = _Last()
