"""Walk the files of a local folder; symlinks are followed, and loops of them end."""

import errno
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

FolderId = tuple[int, int]  # device and inode

# A corpus may have several links to one folder. Folders that link to each other in many ways have more paths than can
# be listed, even without a loop.
_MAX_PATHS_OF_A_FOLDER = 8


def walk_files(top: str) -> Iterator[os.DirEntry[str]]:
    """Yield the regular files below a folder in the order of their names; nothing if the folder does not exist.

    Symlinks are followed. Links to a folder that contains them, and further links to a folder that has been listed
    under 8 paths, are skipped, and one warning reports them.

    Raises:
        OSError: a folder cannot be read.
    """
    try:
        stat = Path(top).stat()
    except FileNotFoundError:
        return
    walk = _Walk()
    yield from walk.list_files(top, frozenset({(stat.st_dev, stat.st_ino)}))
    if walk.skipped:
        logger.warning(
            f"{top}: {len(walk.skipped)} symlinks are not followed, because they lead to a folder that contains them "
            f"or that is listed under {_MAX_PATHS_OF_A_FOLDER} paths already; the first is {walk.skipped[0]}"
        )


@dataclass
class _Walk:
    """A walk in progress: links that were skipped, and how often each folder has been listed."""

    skipped: list[str] = field(default_factory=list)
    num_paths: Counter[FolderId] = field(default_factory=Counter)

    def list_files(self, folder: str, parents: frozenset[FolderId]) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as iterator:
                entries = sorted(iterator, key=lambda entry: entry.name)
        except FileNotFoundError:  # deleted since the listing of its parent
            return
        for entry in entries:
            kind, identity = _inspect(entry)
            if kind == "file":
                yield entry
            elif kind == "loop" or (
                kind == "folder" and (identity in parents or self._is_listed_often(entry, identity))
            ):
                self.skipped.append(entry.path)
            elif kind == "folder":
                self.num_paths[identity] += 1
                yield from self.list_files(entry.path, parents | {identity})

    def _is_listed_often(self, entry: os.DirEntry[str], identity: FolderId) -> bool:
        return entry.is_symlink() and self.num_paths[identity] >= _MAX_PATHS_OF_A_FOLDER


def _inspect(entry: os.DirEntry[str]) -> tuple[Literal["file", "folder", "loop", "other"], FolderId]:
    """Return what an entry is, or what the target of its link is."""
    try:
        if entry.is_file():
            return "file", (0, 0)
        if entry.is_dir():
            stat = entry.stat()
            return "folder", (stat.st_dev, stat.st_ino)
    except FileNotFoundError:  # deleted since the listing
        pass
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link that leads to itself
            raise
        return "loop", (0, 0)
    return "other", (0, 0)
