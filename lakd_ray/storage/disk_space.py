"""Explain the errors of a full or read-only disk: the file, what it needs, and what is free.

Each library reports a full disk in its own way: an errno (Python, Arrow, zipfile), a text with an errno (safetensors),
a text of its own (SQLite), or the symptom only (torch). An error may also have crossed a process boundary of Ray, which
wraps it. `find_full_disk` recognizes all of them; its result is a `DiskFullError`, which no stage retries.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lakd_ray.errors import DiskFullError
from lakd_ray.storage.filesystems import is_remote, resolve_filesystem

_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_TEXTS = {
    **{os.strerror(code): code for code in _ERRNOS},
    **{f"os error {code})": code for code in _ERRNOS},  # of libraries in Rust
    "database or disk is full": errno.ENOSPC,
    "OutOfDiskError": errno.ENOSPC,  # of Ray, for its object store
}
# Texts that do not name the cause: the disk has to be looked at.
_SYMPTOMS = re.compile(
    "unable to open database file|disk I/O error|attempt to write a readonly database|inline_container|StreamWriter"
)
_NEARLY_FULL_BYTES = 1_000_000
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your space, or have your quota raised",
    errno.EROFS: "mount the disk for writing, or choose a folder on a different disk",
    errno.EFBIG: "raise the limit of the file size (`ulimit -f`, or that of the file system)",
}


@contextmanager
def explain_full_disk(action: str = "write", location: str | Path | None = None) -> Iterator[None]:
    """Turn any error of a full or read-only disk in the block into a DiskFullError; other errors pass unchanged.

    Args:
        action: a verb for the message, for instance `write`.
        location: the file or folder that the block writes; None, or one in a bucket: the temporary folder may be full.
    """
    try:
        yield
    except Exception as error:
        if (full := find_full_disk(error, action, location)) is not None:
            raise full from error
        raise


def find_full_disk(
    error: BaseException, action: str = "write", location: str | Path | None = None, needed_bytes: int | None = None
) -> DiskFullError | None:
    """Return the explanation of an error that a full or read-only disk has caused; None for other errors.

    Args:
        error: the error, perhaps one that wraps the cause.
        action: a verb for the message.
        location: the file or folder that was written; None: the temporary folder.
        needed_bytes: minimum size of the complete file, where it is known.
    """
    target = _local_target(location)
    for cause in _causes(error):
        if isinstance(cause, DiskFullError):
            return DiskFullError(str(getattr(cause, "cause", None) or cause))
        code = _disk_errno(cause, target)
        if code is not None:
            name = getattr(cause, "filename", None)
            if isinstance(name, str | bytes) and target.is_dir():  # else the name of a temporary file
                file = Path(os.fsdecode(name))
                return DiskFullError(f"cannot {action} {file}: {_describe(code, file, needed_bytes)}")
            named = target if location is None else location
            return DiskFullError(f"cannot {action} {named}: {_describe(code, target, needed_bytes)}")
    return None


def _local_target(location: str | Path | None) -> Path:
    if location is None or is_remote(str(location)):
        return Path(tempfile.gettempdir())
    return Path(resolve_filesystem(str(location))[1])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all errors that it wraps, outermost first."""
    pending, seen = [error], set[int]()
    while pending:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        wrapped: list[Any] = [getattr(current, name, None) for name in ("__cause__", "__context__")]
        wrapped += [getattr(current, name, None) for name in ("cause", "orig", "_base_exc")]  # Ray, SQLAlchemy, Train
        workers = getattr(current, "worker_failures", None)
        wrapped += list(workers.values()) if isinstance(workers, dict) else []
        pending += [other for other in wrapped if isinstance(other, BaseException)]


def _disk_errno(error: BaseException, target: Path) -> int | None:
    code = getattr(error, "errno", None)
    if isinstance(error, OSError) and code in _ERRNOS:
        return int(code)
    text = str(error)
    for words, code in _TEXTS.items():
        if words in text:
            return code
    if _SYMPTOMS.search(text):
        state = _disk_state(target)
        if state.f_flag & os.ST_RDONLY:
            return errno.EROFS
        if _lacks_inodes(state) or state.f_bavail * state.f_frsize < _NEARLY_FULL_BYTES:
            return errno.ENOSPC
    return None


def _describe(code: int, file: Path, needed_bytes: int | None) -> str:
    state, folder = _disk_state(file), file if file.is_dir() else nearest_existing_parent(file.parent)
    free = format_bytes(state.f_bavail * state.f_frsize)
    if code == errno.ENOSPC and _lacks_inodes(state):
        return (
            f"no inodes are left: the disk of {folder} has {free} free, but it cannot hold one more file; delete files "
            "that are not needed (`df -i` shows the number of inodes)"
        )
    needs = "" if needed_bytes is None else f"the file needs at least {format_bytes(needed_bytes)}, and "
    return f"{os.strerror(code)}: {needs}{free} are free in {folder}; {_REMEDIES[code]}"


def _disk_state(file: Path) -> os.statvfs_result:
    return os.statvfs(nearest_existing_parent(file))


def _lacks_inodes(state: os.statvfs_result) -> bool:
    return state.f_files > 0 and state.f_favail == 0  # some file systems have no limit, and report none at all


def free_bytes(folder: str | Path) -> int:
    """Return the free bytes of the disk of a local folder, which need not exist yet."""
    return shutil.disk_usage(nearest_existing_parent(folder)).free


def nearest_existing_parent(folder: str | Path) -> Path:
    """Return the folder itself if it exists, or its nearest parent that does."""
    path = Path(os.path.expanduser(folder)).absolute()
    while not path.exists():
        path = path.parent
    return path


def format_bytes(size: float) -> str:
    """Return a number of bytes in human-readable form, for instance `3.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
