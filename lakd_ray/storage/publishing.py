"""Publish complete files and folders under their final names, so that they survive a power loss.

A rename alone is not enough: on ext4 with its default options, a file that was moved seconds before a power loss has
its final name and no content. Every publish therefore syncs the file, moves it, and syncs the folder that has the new
name. A later publish, for instance of a folder's checksum file, thus never becomes visible before an earlier one.
"""

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from shutil import copyfileobj as copy_stream

import pyarrow.fs as pafs

from lakd_ray.storage.conditional import replace_object
from lakd_ray.storage.fences import check_fences, find_fences
from lakd_ray.storage.filesystems import is_remote, resolve_filesystem
from lakd_ray.storage.syncing import make_folder, sync_file, sync_folder

_MAX_CONDITIONAL_BYTES = 8_000_000  # one request; larger files are uploaded in parts


def publish(temporary: Path, location: str) -> None:
    """Move a complete local file to a location on the same disk, or upload it to a bucket; replace an existing file.

    Raises:
        OSError: the file cannot be synced, moved or uploaded; nothing is published.
        LeaseError: this process has lost the lease of the folder; nothing is published.
    """
    filesystem, path = resolve_filesystem(location)
    fences = find_fences(location)
    if is_remote(location):
        is_small = temporary.stat().st_size <= _MAX_CONDITIONAL_BYTES
        if is_small and fences and fences[0].server_has_conditions:
            replace_object(location, temporary.read_bytes(), partial(check_fences, location))
            return
        check_fences(location)
        _upload(temporary, filesystem, path)
        return
    with fences[0].explain() if fences else nullcontext():
        sync_file(temporary)
        check_fences(location)
        os.replace(temporary, path)
    sync_folder(Path(path).parent)


def publish_folder(temporary: Path, folder: Path) -> None:
    """Move a complete local folder to a new name on the same disk, after syncing all files in it.

    Raises:
        OSError: a file cannot be synced, or the folder exists and is not empty.
    """
    for parent, _, files in os.walk(temporary):
        for name in files:
            sync_file(Path(parent, name))
        sync_folder(Path(parent))
    make_folder(folder.parent)
    check_fences(str(folder))
    os.replace(temporary, folder)
    sync_folder(folder.parent)


def _upload(source: Path, filesystem: pafs.FileSystem, path: str) -> None:
    """Upload a complete file. Closing the stream raises the errors of refused parts, and then nothing is published."""
    with source.open("rb") as content, filesystem.open_output_stream(path) as stream:
        copy_stream(content, stream, 1 << 20)
    if filesystem.get_file_info(path).size != source.stat().st_size:
        filesystem.delete_file(path)
        raise OSError(f"{path} has a different size after the upload")
