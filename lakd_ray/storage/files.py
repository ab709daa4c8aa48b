"""Find, list, read, write and delete single files."""

import io
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lakd_ray.errors import StorageError
from lakd_ray.scratch import make_scratch_folder, remove_scratch_folder
from lakd_ray.storage.conditional import append_line, create_file
from lakd_ray.storage.errors import translate_errors
from lakd_ray.storage.fences import check_fences, find_fences
from lakd_ray.storage.filesystems import (
    is_remote,
    join,
    resolve_filesystem,
    resolve_s3fs,
)
from lakd_ray.storage.local_walk import walk_files
from lakd_ray.storage.publishing import publish
from lakd_ray.storage.syncing import make_folder


@dataclass(frozen=True, order=True)
class FileInfo:
    """A file with the properties that a listing has."""

    location: str
    size: int
    """Size in bytes."""
    version: str
    """Changes with the content: the modification time in nanoseconds on a disk, the ETag in a bucket."""
    modified: float
    """Modification time in seconds since 1970."""

    @property
    def name(self) -> str:
        """The last part of the location, without folders."""
        return self.location.rpartition("/")[2]


def exists(location: str) -> bool:
    """Return whether a file or folder exists."""
    filesystem, path = resolve_filesystem(location)
    with translate_errors("access", location):
        return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def list_files(folder: str) -> Iterator[FileInfo]:
    """Yield all files below a folder from one listing, sorted by location; nothing if the folder does not exist.

    Raises:
        StorageError: the folder or the bucket cannot be read, or the bucket does not exist.
        UnicodeDecodeError: the name of a local file is not UTF-8, see `walk_files`.
    """
    yield from sorted(_list_bucket(folder) if is_remote(folder) else _list_local(folder))


def _list_local(folder: str) -> Iterator[FileInfo]:
    path = resolve_filesystem(folder)[1]
    with translate_errors("list", folder):
        for file in walk_files(path):
            try:
                stat = file.stat()
            except FileNotFoundError:  # deleted since the listing
                continue
            os.fsencode(file.path).decode()  # raises UnicodeDecodeError: neither Arrow nor JSON can store other names
            location = join(folder, file.path[len(path) :])
            yield FileInfo(location, stat.st_size, str(stat.st_mtime_ns), stat.st_mtime_ns / 1e9)


def _list_bucket(folder: str) -> Iterator[FileInfo]:
    from botocore.exceptions import (
        BotoCoreError,
        NoCredentialsError,
    )  # slow to import, and only listings need it, as s3fs

    filesystem, path = resolve_s3fs(folder)
    below = path.strip("/") + "/"
    with translate_errors("list", folder):
        try:
            objects = filesystem.find(below, detail=True)
        except NoCredentialsError as error:
            raise PermissionError(str(error)) from error
        except BotoCoreError as error:
            raise OSError(str(error)) from error
    for key, info in objects.items():
        if key.startswith(below) and not key.endswith("/"):  # pyarrow writes markers of folders
            changed = info["LastModified"]
            version = info.get("ETag", "").strip('"') or changed.isoformat()
            yield FileInfo(join(folder, key[len(below) :]), info["size"], version, changed.timestamp())


def list_folders(location: str) -> list[str]:
    """Return the sorted names of the folders directly below a folder; empty if it does not exist."""
    filesystem, path = resolve_filesystem(location)
    with translate_errors("list", location):
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=False, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def read_bytes(location: str) -> bytes:
    """Return the content of a file."""
    filesystem, path = resolve_filesystem(location)
    with translate_errors("read", location), filesystem.open_input_file(path) as stream:
        return bytes(stream.read())


def write_bytes(location: str, content: bytes) -> None:
    """Write the content atomically to a file: readers see the complete file or the previous state."""
    with atomic_writer(location) as stream:
        stream.write(content)


@contextmanager
def atomic_writer(location: str) -> Iterator[io.RawIOBase]:
    """Yield a stream whose content appears at `location` when the block ends without an error.

    Raises:
        DiskFullError, StorageError: the stream's own calls or the end of the block fail; other errors of the block pass
            unchanged.
    """
    with translate_errors("write", location):
        temporary = _temporary_path(location)
        stream = _AtomicOutput(temporary.open("wb"), temporary, location)
    try:
        yield stream
        stream.close()
        with stream.translate_errors():
            publish(temporary, location)
    finally:
        stream.discard()


def _temporary_path(location: str) -> Path:
    """Return a path for the file while it is incomplete, in an existing folder."""
    if is_remote(location):  # closing a stream into a bucket publishes its content so far: upload complete files only
        return make_scratch_folder() / "content.part"
    path = Path(resolve_filesystem(location)[1])
    make_folder(path.parent)
    fences = find_fences(location)
    staged = fences[0].temporary_path(path) if fences else None
    return staged or path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


class _AtomicOutput(io.RawIOBase):
    """A temporary file whose errors name the final location."""

    def __init__(self, file: BinaryIO, temporary: Path, location: str) -> None:
        self._file, self._temporary, self._location, self._needed = file, temporary, location, 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        size = memoryview(content).nbytes
        self._needed += size
        with self.translate_errors():
            self._file.write(content)
        return size

    def close(self) -> None:
        with self.translate_errors():
            self._file.close()
        super().close()

    def discard(self) -> None:
        """Close the stream in any state and delete the temporary file, if it still exists."""
        with suppress(OSError):  # its buffer may not fit the disk
            self._file.close()
        super().close()
        self._temporary.unlink(missing_ok=True)
        if is_remote(self._location):
            remove_scratch_folder(self._temporary.parent)

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turn errors into those of the final location."""
        with translate_errors("write", self._location, self._needed):
            try:
                yield
            except OSError:
                with suppress(OSError):  # the first error counts
                    os.truncate(self._temporary, 0)  # its bytes count as free in the message
                raise


def read_json(location: str) -> Any:
    """Return the content of a JSON file.

    Raises:
        StorageError: the file is missing or not JSON.
    """
    content = read_bytes(location)
    try:
        return json.loads(content)
    except ValueError as error:
        raise StorageError(f"{location} is not valid JSON ({error}): it is damaged. Delete it and run again") from None


def write_json(location: str, value: Any) -> None:
    """Write a JSON file atomically, with sorted keys."""
    write_bytes(location, _encode_json(value))


def _encode_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_table(location: str, columns: list[str] | None = None) -> pa.Table:
    """Return a Parquet file as a table.

    Args:
        location: the file.
        columns: names of the columns to read; None: all.

    Raises:
        StorageError: the file is missing, corrupted or cannot be read.
    """
    filesystem, path = resolve_filesystem(location)
    with _translate_parquet_errors(location):
        return pq.read_table(path, columns=columns, filesystem=filesystem)


def read_schema(location: str) -> pa.Schema:
    """Return the schema of a Parquet file, without reading its rows.

    Raises:
        StorageError: the file is missing, corrupted or cannot be read.
    """
    filesystem, path = resolve_filesystem(location)
    with _translate_parquet_errors(location):
        return pq.read_schema(path, filesystem=filesystem)


def read_row_groups(location: str, row_groups: Sequence[int], columns: list[str]) -> list[pa.Table]:
    """Read some row groups of a Parquet file, and only their bytes.

    Args:
        location: the file.
        row_groups: indices of the row groups, in the order of the result.
        columns: names of the columns to read.

    Raises:
        StorageError: the file is missing, corrupted or cannot be read.
    """
    filesystem, path = resolve_filesystem(location)
    with _translate_parquet_errors(location), pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True) as file:
        return [file.read_row_group(number, columns=columns) for number in row_groups]


@contextmanager
def _translate_parquet_errors(location: str) -> Iterator[None]:
    with translate_errors("read", location):
        try:
            yield
        except pa.ArrowInvalid as error:
            raise StorageError(
                f"{location} is damaged: {error}. Delete it and run the stage that writes it again."
            ) from error


def write_table(location: str, table: pa.Table, *, row_group_size: int | None = None) -> None:
    """Write a Parquet file atomically, compressed by zstd."""
    with atomic_writer(location) as stream:
        pq.write_table(table, stream, row_group_size=row_group_size, compression="zstd")


def create_json(location: str, value: Any) -> bool:
    """Create a JSON file; return False and change nothing if it exists. Of several processes, one gets True."""
    check_fences(location)
    return create_file(location, _encode_json(value))


def add_line(location: str, value: Any) -> None:
    """Append a line with a JSON value to a file, which several processes may do; no line is lost."""
    append_line(location, json.dumps(value), lambda: check_fences(location))


def read_lines(location: str) -> list[Any]:
    """Return the JSON values of a file that `add_line` writes, without torn lines; empty if it does not exist."""
    values = []
    for line in read_bytes(location).splitlines() if exists(location) else ():
        with suppress(ValueError):  # a torn line
            values.append(json.loads(line))
    return values


def delete(location: str) -> None:
    """Delete a file, or a folder with its content; do nothing if it does not exist."""
    check_fences(location)
    filesystem, path = resolve_filesystem(location)
    with translate_errors("delete", location):
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)
