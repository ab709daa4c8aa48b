"""Folders that are whole or not there: filled by one or several writers, sealed last, verified before they are read."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lakd_ray.errors import DamagedError
from lakd_ray.storage.files import delete, exists, read_bytes, read_json, write_json, writing
from lakd_ray.storage.places import is_remote, join, resolve

SEAL = "SEAL.json"


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
        DamagedError: there is no seal, or a file is missing, cut short or changed.
    """
    if not exists(join(location, SEAL)):
        raise DamagedError(
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
            raise DamagedError(f"{folder} is damaged: {name} is missing. Run the stage that makes it again.")
        size = file.stat().st_size
        if size != expected["bytes"] or file_hash(file) != expected["sha256"]:
            raise DamagedError(
                f"{file} is damaged: found {size} bytes, expected {expected['bytes']} with SHA-256 "
                f"{expected['sha256'][:12]}. Run the stage that makes it again."
            )
