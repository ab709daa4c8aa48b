"""Files on a disk or in a bucket, by one set of calls.

A location is a plain path or `s3://bucket/prefix`. Nothing half written is ever taken for whole: single files are
written to a temporary name and moved (an S3 upload is atomic by itself), and folders carry a seal, written last, with
the size and hash of every file (`publish_folder`, `fetched_folder`).

S3 credentials come from the usual AWS_* environment variables; AWS_ENDPOINT_URL points at other servers than Amazon's.
"""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lakd_ray.errors import StorageError

SEAL = "SEAL.json"


def is_remote(location: str) -> bool:
    """Whether the location is in a bucket."""
    return "://" in location


def join(location: str, *parts: str) -> str:
    """A location below another."""
    return "/".join([location.rstrip("/"), *(part.strip("/") for part in parts)])


def resolve(location: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a location and the path in it.

    Raises:
        StorageError: the scheme is not known.
    """
    if not is_remote(location):
        return _local(), os.path.abspath(os.path.expanduser(location))
    scheme, _, path = location.partition("://")
    if scheme != "s3":
        raise StorageError(f"cannot use {location!r}: expected a path or s3://bucket/prefix")
    return _s3(), path


@lru_cache(maxsize=1)
def _local() -> pafs.FileSystem:
    return pafs.LocalFileSystem()


@lru_cache(maxsize=1)
def _s3() -> pafs.FileSystem:
    options: dict[str, Any] = {"connect_timeout": 10, "request_timeout": 60}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        parsed = urlparse(endpoint)
        options |= {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    return pafs.S3FileSystem(**options)


@contextmanager
def _explained(action: str, location: str) -> Iterator[None]:
    """Turn the filesystem's errors into one that says what to check."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"cannot {action} {location}: it does not exist ({error})") from error
    except OSError as error:
        hint = "check the bucket's name, the AWS_* credentials and AWS_ENDPOINT_URL"
        if not is_remote(location):
            hint = "check the path, its permissions and the free space"
        raise StorageError(f"cannot {action} {location}: {error}; {hint}") from error


def exists(location: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = resolve(location)
    with _explained("look at", location):
        return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def list_files(location: str) -> list[str]:
    """All files below a folder, as sorted locations relative to it; empty if there is no such folder."""
    filesystem, path = resolve(location)
    with _explained("list", location):
        found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(info.path[len(path) :].lstrip("/") for info in found if info.type == pafs.FileType.File)


def list_folders(location: str) -> list[str]:
    """Names of the folders directly below one; empty if there is none."""
    filesystem, path = resolve(location)
    with _explained("list", location):
        found = filesystem.get_file_info(pafs.FileSelector(path, recursive=False, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)


def read_bytes(location: str) -> bytes:
    """The content of a file."""
    filesystem, path = resolve(location)
    with _explained("read", location), filesystem.open_input_file(path) as stream:
        return bytes(stream.read())


def write_bytes(location: str, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    with writing(location) as stream:
        stream.write(content)


@contextmanager
def writing(location: str) -> Iterator[pa.NativeFile]:
    """A stream whose content appears at `location` when the block ends without an error."""
    filesystem, path = resolve(location)
    with _explained("write", location):
        if isinstance(filesystem, pafs.LocalFileSystem):
            folder, name = os.path.split(path)
            os.makedirs(folder, exist_ok=True)
            temporary = Path(folder, f".{name}.{uuid.uuid4().hex[:8]}.part")
        else:  # closing a stream into a bucket publishes what was written so far, so only whole files are sent
            temporary = Path(tempfile.gettempdir(), f"lakd-{uuid.uuid4().hex[:8]}.part")
        try:
            with _local().open_output_stream(str(temporary)) as stream:
                yield stream
            if isinstance(filesystem, pafs.LocalFileSystem):
                os.replace(temporary, path)
            else:
                _upload(temporary, filesystem, path)
        finally:
            temporary.unlink(missing_ok=True)


def _upload(source: Path, filesystem: pafs.FileSystem, path: str) -> None:
    """Send a whole file. Closing the stream reports refused parts, so it is closed here and not when collected."""
    with source.open("rb") as content:
        stream = filesystem.open_output_stream(path)
        try:
            shutil.copyfileobj(content, stream, 1 << 20)
        finally:
            stream.close()
    if filesystem.get_file_info(path).size != source.stat().st_size:
        raise OSError(f"{path} arrived with another size than was sent")


def read_json(location: str) -> Any:
    """The content of a JSON file.

    Raises:
        StorageError: it is missing or not JSON.
    """
    content = read_bytes(location)
    try:
        return json.loads(content)
    except ValueError as error:
        raise StorageError(f"{location} is not valid JSON ({error}): it is damaged, delete it and run again") from None


def write_json(location: str, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_bytes(location, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_table(location: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file as a table."""
    filesystem, path = resolve(location)
    with _explained("read", location):
        try:
            return pq.read_table(path, columns=columns, filesystem=filesystem)
        except pa.ArrowInvalid as error:
            raise StorageError(
                f"{location} is damaged: {error}. Delete it and run the stage that makes it again."
            ) from error


def write_table(location: str, table: pa.Table, *, row_group_size: int | None = None) -> None:
    """Write a Parquet file, whole or not at all."""
    with writing(location) as stream:
        pq.write_table(table, stream, row_group_size=row_group_size, compression="zstd")


def delete(location: str) -> None:
    """Remove a file or a folder with all it holds; nothing happens if there is none."""
    filesystem, path = resolve(location)
    with _explained("delete", location):
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)


def file_hash(path: Path) -> str:
    """SHA-256 of a local file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


Seal = dict[str, dict[str, Any]]  # file name -> {"bytes", "sha256"}


def unseal(location: str) -> None:
    """Withdraw a folder's seal before its files are replaced."""
    delete(join(location, SEAL))


def copy_into(source: Path, location: str) -> Seal:
    """Copy a local folder's files to a location; several writers may fill one folder. Returns its part of the seal."""
    part: Seal = {}
    for file in sorted(file for file in source.rglob("*") if file.is_file() and file.name != SEAL):
        name = str(file.relative_to(source))
        with writing(join(location, name)) as stream, file.open("rb") as content:
            shutil.copyfileobj(content, stream, 1 << 20)
        part[name] = {"bytes": file.stat().st_size, "sha256": file_hash(file)}
    return part


def seal(location: str, parts: Iterable[Seal]) -> None:
    """Declare a folder whole: written last, and what readers ask for first."""
    whole = {name: entry for part in parts for name, entry in part.items()}
    write_json(join(location, SEAL), whole)


def publish_folder(source: Path, location: str) -> None:
    """Copy a local folder to a location and seal it: readers see it whole or not at all."""
    unseal(location)
    seal(location, [copy_into(source, location)])


@contextmanager
def fetched_folder(location: str) -> Iterator[Path]:
    """A sealed folder as a local, verified one; a bucket's content is copied to a temporary folder.

    Raises:
        StorageError: there is no seal, or a file is missing, cut short or changed.
    """
    if not exists(join(location, SEAL)):
        raise StorageError(
            f"{location} is not a complete folder: its {SEAL} is missing, so it was never finished or is not one of "
            "this project's. Run the stage that makes it again."
        )
    expected: Seal = read_json(join(location, SEAL))
    if not is_remote(location):
        folder = Path(resolve(location)[1])
        _verify(folder, expected)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lakd-") as temporary:
        for name in expected:
            file = Path(temporary, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(read_bytes(join(location, name)))
        _verify(Path(temporary), expected)
        yield Path(temporary)


def _verify(folder: Path, files: Seal) -> None:
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise StorageError(f"{folder} is damaged: {name} is missing. Run the stage that makes it again.")
        size = file.stat().st_size
        if size != expected["bytes"] or file_hash(file) != expected["sha256"]:
            raise StorageError(
                f"{file} is damaged: found {size} bytes, expected {expected['bytes']} with SHA-256 "
                f"{expected['sha256'][:12]}. Run the stage that makes it again."
            )
