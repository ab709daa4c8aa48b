"""Write and read checksummed folders; a folder without a valid checksum file, which is written last, is rejected."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lakd_ray.errors import CorruptedError, DiskFullError, StorageError
from lakd_ray.scratch import scratch_folder
from lakd_ray.storage.confined import confine
from lakd_ray.storage.disk_space import explain_full_disk, format_bytes, free_bytes
from lakd_ray.storage.files import atomic_writer, delete, exists, list_files, read_bytes, read_json, write_json
from lakd_ray.storage.filesystems import is_remote, join, resolve_filesystem

CHECKSUMS_FILE = "SEAL.json"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a local file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


Checksums = dict[str, dict[str, Any]]  # file name -> {"bytes": size, "sha256": hexadecimal digest}


def remove_checksums(location: str) -> None:
    """Delete a folder's checksum file, before its files are deleted or replaced."""
    delete(join(location, CHECKSUMS_FILE))


def empty_folder(location: str) -> None:
    """Delete the files of a folder before it is written, its checksum file first.

    An earlier attempt may have left files that the next one does not write, for instance those of a second rank.
    """
    remove_checksums(location)
    for file in list_files(location):
        delete(file.location)


def upload_folder(source: Path, location: str) -> Checksums:
    """Copy the files of a local folder to a location, to which several writers may upload.

    Returns:
        The checksums of the copied files, for `write_checksums`.
    """
    checksums: Checksums = {}
    for file in sorted(file for file in source.rglob("*") if file.is_file() and file.name != CHECKSUMS_FILE):
        name = str(file.relative_to(source))
        with atomic_writer(join(location, name)) as stream, file.open("rb") as content:
            shutil.copyfileobj(content, stream, 1 << 20)
        checksums[name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    return checksums


def write_checksums(location: str, parts: Iterable[Checksums]) -> None:
    """Write the checksum file of a folder, after which readers accept it.

    Args:
        location: the folder, which has all its files.
        parts: the checksums that each writer of the folder returned.
    """
    checksums = {name: entry for part in parts for name, entry in part.items()}
    write_json(join(location, CHECKSUMS_FILE), checksums)


def write_checksummed_folder(source: Path, location: str) -> None:
    """Copy a local folder to a location; readers see the complete folder or none."""
    empty_folder(location)
    write_checksums(location, [upload_folder(source, location)])


@contextmanager
def open_checksummed_folder(location: str) -> Iterator[Path]:
    """Verify a folder and yield it as a local path; a folder in a bucket is copied to a temporary one.

    The yielded folder has the files of the checksum file and no others, except hidden ones, which nothing loads.

    Raises:
        CorruptedError: the checksum file or another file is missing, a file is truncated or changed, the folder has a
            file that the checksum file does not list, or the checksum file lists one outside of the folder.
        DiskFullError: the temporary folder has no room for the files.
    """
    if not exists(join(location, CHECKSUMS_FILE)):
        raise CorruptedError(
            f"{location} is not a complete folder: {CHECKSUMS_FILE} is missing, so it was never finished or does not "
            "belong to this project. Rerun the stage that writes it."
        )
    expected = _read_checksums(location)
    if not is_remote(location):
        folder = Path(resolve_filesystem(location)[1])
        _refuse_unlisted_files(folder, expected)
        _verify_checksums(folder, expected)
        yield folder
        return
    with scratch_folder() as temporary:
        with explain_full_disk("copy files to", temporary):
            _download(location, expected, str(temporary))
        _verify_checksums(Path(temporary), expected)
        yield Path(temporary)


def _read_checksums(location: str) -> Checksums:
    """Return the content of a folder's checksum file, with names that are confined to the folder."""
    file = join(location, CHECKSUMS_FILE)
    content: Checksums = read_json(file)
    try:
        for name, entry in content.items():
            confine(location, name)
            _ = int(entry["bytes"]), str(entry["sha256"])
    except StorageError as error:
        raise CorruptedError(f"{file} is damaged or was manipulated: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptedError(f"{file} is damaged: {error!r}. Rerun the stage that writes it.") from error
    return content


def _download(location: str, files: Checksums, folder: str) -> None:
    needed = sum(int(entry["bytes"]) for entry in files.values())
    if needed > (free := free_bytes(folder)):
        raise DiskFullError(
            f"cannot copy {location} to the temporary folder {folder}: its files need {format_bytes(needed)}, and "
            f"{format_bytes(free)} are free; free some space, or set TMPDIR to a folder on a different disk"
        )
    for name in files:
        file = Path(confine(folder, name))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(read_bytes(join(location, name)))


def _refuse_unlisted_files(folder: Path, files: Checksums) -> None:
    names = (info.location.removeprefix(f"{folder}/") for info in list_files(str(folder)))
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if unlisted := [name for name in shown if name not in files and name != CHECKSUMS_FILE]:
        raise CorruptedError(
            f"{folder} has files that {CHECKSUMS_FILE} does not list, the first is {unlisted[0]}: nothing verifies "
            "them. Delete them, or rerun the stage that writes the folder."
        )


def _verify_checksums(folder: Path, files: Checksums) -> None:
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise CorruptedError(f"{folder} is damaged: {name} is missing. Rerun the stage that writes it.")
        size = file.stat().st_size
        if size != expected["bytes"] or file_sha256(file) != expected["sha256"]:
            raise CorruptedError(
                f"{file} is damaged: found {size} bytes, expected {expected['bytes']} with SHA-256 "
                f"{expected['sha256'][:12]}. Rerun the stage that writes it."
            )
