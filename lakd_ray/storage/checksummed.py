"""Folders that are whole or not there: filled by one or several writers, sealed last, verified before they are read."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lakd_ray.errors import CorruptedError
from lakd_ray.storage.files import atomic_writer, delete, exists, read_bytes, read_json, write_json
from lakd_ray.storage.filesystems import is_remote, join, resolve_filesystem

CHECKSUMS_FILE = "SEAL.json"


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


Checksums = dict[str, dict[str, Any]]  # file name -> {"bytes", "sha256"}


def remove_checksums(location: str) -> None:
    """Withdraw a folder's seal before its files are replaced."""
    delete(join(location, CHECKSUMS_FILE))


def upload_folder(source: Path, location: str) -> Checksums:
    """Copy a local folder's files to a location; several writers may fill one folder. Returns its part of the seal."""
    part: Checksums = {}
    for file in sorted(file for file in source.rglob("*") if file.is_file() and file.name != CHECKSUMS_FILE):
        name = str(file.relative_to(source))
        with atomic_writer(join(location, name)) as stream, file.open("rb") as content:
            shutil.copyfileobj(content, stream, 1 << 20)
        part[name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    return part


def write_checksums(location: str, parts: Iterable[Checksums]) -> None:
    """Declare a folder whole: written last, and what readers ask for first."""
    whole = {name: entry for part in parts for name, entry in part.items()}
    write_json(join(location, CHECKSUMS_FILE), whole)


def write_checksummed_folder(source: Path, location: str) -> None:
    """Copy a local folder to a location and seal it: readers see it whole or not at all."""
    remove_checksums(location)
    write_checksums(location, [upload_folder(source, location)])


@contextmanager
def open_checksummed_folder(location: str) -> Iterator[Path]:
    """A sealed folder as a local, verified one; a bucket's content is copied to a temporary folder.

    Raises:
        CorruptedError: there is no seal, or a file is missing, cut short or changed.
    """
    if not exists(join(location, CHECKSUMS_FILE)):
        raise CorruptedError(
            f"{location} is not a complete folder: its {CHECKSUMS_FILE} is missing, so it was never finished or is not one of "
            "this project's. Run the stage that makes it again."
        )
    expected: Checksums = read_json(join(location, CHECKSUMS_FILE))
    if not is_remote(location):
        folder = Path(resolve_filesystem(location)[1])
        _verify_checksums(folder, expected)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lakd-") as temporary:
        for name in expected:
            file = Path(temporary, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(read_bytes(join(location, name)))
        _verify_checksums(Path(temporary), expected)
        yield Path(temporary)


def _verify_checksums(folder: Path, files: Checksums) -> None:
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise CorruptedError(f"{folder} is damaged: {name} is missing. Run the stage that makes it again.")
        size = file.stat().st_size
        if size != expected["bytes"] or file_sha256(file) != expected["sha256"]:
            raise CorruptedError(
                f"{file} is damaged: found {size} bytes, expected {expected['bytes']} with SHA-256 "
                f"{expected['sha256'][:12]}. Run the stage that makes it again."
            )
