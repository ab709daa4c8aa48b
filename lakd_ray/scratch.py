"""Temporary folders of this project, which the next process removes if their process was killed.

All of them are made here: `lakd-scratch-<random>` in TMPDIR, with mode 700. Their process holds a lock (flock) on the
folder, which the kernel releases when the process ends, however it ends. A folder without the lock is left over; it
can have the size of a training state.
"""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lakd_ray.processes import is_alive

PREFIX = "lakd-scratch-"
RAY_SESSION_MARK = "lakd-session"
"""A file in the folder of a Ray session that a command of this project has started."""
_NUM_RETAINED_SESSIONS = 3  # the newest ended sessions, for their logs

_locks: dict[Path, int] = {}


@contextmanager
def scratch_folder(parent: str | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder in TMPDIR or in `parent`, which is removed when the block ends."""
    folder = make_scratch_folder(parent)
    try:
        yield folder
    finally:
        remove_scratch_folder(folder)


def make_scratch_folder(parent: str | None = None) -> Path:
    """Return an empty temporary folder; `remove_scratch_folder` removes it, or a later process if this one ends.

    Args:
        parent: the folder that contains it; TMPDIR if None.
    """
    _remove_leftovers_once(os.getpid(), parent or tempfile.gettempdir())
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try:
            lock = _try_lock(folder)
        except OSError:  # a file system without locks, where no process can take the folder for a leftover
            return folder
        if lock is not None:
            _locks[folder] = lock
            return folder  # otherwise a process that removes leftovers was faster


def remove_scratch_folder(folder: Path) -> None:
    """Remove a temporary folder with its content; do nothing if it does not exist."""
    shutil.rmtree(folder, ignore_errors=True)
    if (lock := _locks.pop(folder, None)) is not None:
        os.close(lock)


@dataclass(frozen=True)
class Leftover:
    """A temporary folder of a process that has ended."""

    path: Path
    reason: str

    @property
    def size(self) -> int:
        """Number of bytes of all its files."""
        return sum(_size(Path(parent, name)) for parent, _, names in os.walk(self.path) for name in names)


def find_leftovers() -> list[Leftover]:
    """Return the temporary folders that processes of this user have left, without those of running processes.

    They are scratch folders, folders of sockets by Python's multiprocessing, and folders of Ray sessions with
    `RAY_SESSION_MARK`, except for the newest ones.
    """
    root = Path(tempfile.gettempdir())
    sessions = Path(os.environ.get("RAY_TMPDIR") or root, "ray")
    leftovers = [Leftover(folder, "scratch folder") for folder in _own(root.glob(f"{PREFIX}*")) if _is_unlocked(folder)]
    leftovers += [Leftover(folder, "sockets of processes") for folder in _own(root.glob("pymp-*")) if _is_dead(folder)]
    marks = _own(sessions.glob(f"session_*/{RAY_SESSION_MARK}"))
    ended = [mark.parent for mark in sorted(marks) if _is_dead(mark.parent) and not _names_live_process(mark.parent)]
    return leftovers + [Leftover(folder, "Ray session that has ended") for folder in ended[:-_NUM_RETAINED_SESSIONS]]


def remove_leftovers() -> int:
    """Remove what `find_leftovers` finds and return its size in bytes."""
    freed = 0
    for leftover in find_leftovers():
        size = leftover.size
        if leftover.path.name.startswith(PREFIX):
            _remove_if_unlocked(leftover.path)
        else:
            shutil.rmtree(leftover.path, ignore_errors=True)
        freed += 0 if leftover.path.exists() else size
    return freed


@cache
def _remove_leftovers_once(_pid: int, parent: str) -> None:
    for folder in _own(Path(parent).glob(f"{PREFIX}*")):
        _remove_if_unlocked(folder)


def _own(paths: Iterator[Path]) -> list[Path]:
    """Return the paths that belong to this user and are no links."""
    own = []
    for path in paths:
        with suppress(OSError):  # removed meanwhile
            if path.lstat().st_uid == os.getuid() and not path.is_symlink():
                own.append(path)
    return own


def _try_lock(folder: Path) -> int | None:
    """Lock a folder; return None if a different process holds the lock or has removed the folder.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is_unlocked(folder: Path) -> bool:
    with suppress(OSError):  # cannot be locked: counts as in use
        if (lock := _try_lock(folder)) is not None:
            os.close(lock)
            return True
    return False


def _remove_if_unlocked(folder: Path) -> None:
    with suppress(OSError):  # cannot be locked: left to its owner
        if (lock := _try_lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)  # while it is locked, so that no process begins to use it
            os.close(lock)


def _is_dead(folder: Path) -> bool:
    """Return whether a folder has sockets, and no process has any of them open."""
    sockets = [path for path in folder.rglob("*") if path.is_socket()]
    names = tuple(f"/{path.relative_to(folder.parent)}" for path in sockets)  # the way to TMPDIR may be a link
    if not sockets or any(path.endswith(names) for path in _open_sockets()):
        return False
    return not any(map(_accepts, sockets))  # processes in a different network namespace are not in the list


def _open_sockets() -> list[str]:
    """Return the paths of the Unix sockets that are open.

    To connect is no way to find them: multiprocessing's server of new processes ends when a connection has no request.
    """
    with suppress(OSError):  # no /proc: each socket is then tried
        lines = Path("/proc/net/unix").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        return [fields[7] for line in lines if len(fields := line.split(maxsplit=7)) == 8]
    return []


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:  # for instance a datagram socket, or a name that is too long
            return True
    return True


def _names_live_process(session: Path) -> bool:
    """Return whether the process in the name of a Ray session, which started it, runs."""
    pid = session.name.rpartition("_")[2]
    return pid.isdecimal() and is_alive(int(pid))


def _size(path: Path) -> int:
    with suppress(OSError):  # removed meanwhile
        return path.lstat().st_size
    return 0
