"""Limit the builds of torch's C++ extensions, and remove the locks that killed builds have left.

torch's builder creates an empty file `lock` in the extension's folder and waits without a limit while one exists. A
process that is killed during a build leaves the file, and all later ones would wait for it.
"""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lakd_ray import processes
from lakd_ray.errors import ResourceError

BUILD_TIMEOUT_S = 600.0  # a build takes about a minute, and several on a machine that is busy
_LOCK, _GUARD = "lock", "lakd.lock"
_POLL_S, _LOG_INTERVAL_S = 0.2, 30.0
# A process that has a file open is visible only on its own machine, so locks in other file systems expire by age.
_LOCAL_FILE_SYSTEMS = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def extensions_folder() -> Path:
    """Return the folder in which torch builds extensions."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions").expanduser()


def find_locks(folder: Path) -> list[Path]:
    """Return the lock files of torch's builds in a folder of extensions."""
    return sorted([*folder.glob(f"*/{_LOCK}"), *folder.glob(f"*/*/{_LOCK}")])  # by version of Python and CUDA


def is_stale(lock: Path) -> bool:
    """Return whether no process builds with this lock: none has it open, or, on a shared file system, it is old."""
    try:
        status = lock.stat()
    except FileNotFoundError:
        return False
    if find_owner(lock) is not None:
        return False
    return _is_local(lock) or _file_system_time(lock.parent) - status.st_mtime > BUILD_TIMEOUT_S


def find_owner(lock: Path) -> int | None:
    """Return the id of a process on this machine that has the file open, as torch's builder has while it builds."""
    status = lock.stat()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # of a different user, or ended
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):  # closed meanwhile
                    if os.path.samestat(descriptor.stat(), status):
                        return int(process.name)
    return None


@contextmanager
def limited_build(
    folder: Path, log: Callable[[str], None], *, is_built: bool, timeout_s: float = BUILD_TIMEOUT_S
) -> Iterator[None]:
    """Build or load an extension in the `with` block: one process at a time, with a deadline.

    Args:
        folder: the folder of the extension.
        log: called with a sentence if the build or the wait for a different process takes long.
        is_built: whether the folder has a build already, so that this one takes no time.
        timeout_s: deadline of the wait, and of the build itself.

    Raises:
        ResourceError: a different process does not end its build in time, or the build fails or takes too long.
    """
    if not is_built:
        log(f"building {folder.name} in {folder.parent}, once for each machine; this takes about a minute")
    ended = threading.Event()
    with _guard(folder, log, timeout_s):
        _remove_stale_lock(folder / _LOCK, log, timeout_s)
        own = set(processes.descendants(os.getpid()))
        watcher = threading.Thread(target=_end_build, args=(ended, own, timeout_s), name="build deadline", daemon=True)
        watcher.start()
        started = time.monotonic()
        try:
            yield
        except (RuntimeError, OSError, ImportError) as error:
            late = time.monotonic() - started >= timeout_s
            reason = f"it did not end within {timeout_s:g} s" if late else str(error).strip().splitlines()[-1]
            raise ResourceError(
                f"cannot build the extension {folder.name} of DeepSpeed in {folder}: {reason}. `lakd doctor` checks "
                "the compiler; set TORCH_EXTENSIONS_DIR to a local folder, or train.engine: torch, which needs none"
            ) from error
        finally:
            ended.set()


@contextmanager
def _guard(folder: Path, log: Callable[[str], None], timeout_s: float) -> Iterator[None]:
    """Hold a lock that the kernel releases if this process dies, so that one process at a time uses torch's lock."""
    with open(folder / _GUARD, "ab") as file:

        def acquire() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
            return True

        _wait(acquire, f"a different process to build {folder}", log, timeout_s)
        yield


def _remove_stale_lock(lock: Path, log: Callable[[str], None], timeout_s: float) -> None:
    """Remove a lock that no process holds; wait for a process that holds it. Call it with the guard only."""

    def removed() -> bool:
        if lock.exists() and is_stale(lock):
            log(f"removing {lock}, which a build that was killed has left")
            lock.unlink(missing_ok=True)
        return not lock.exists()

    _wait(removed, f"the process that holds {lock}", log, timeout_s)


def _wait(until: Callable[[], bool], awaited: str, log: Callable[[str], None], timeout_s: float) -> None:
    started = time.monotonic()
    next_line = _LOG_INTERVAL_S
    while not until():
        elapsed = time.monotonic() - started
        if elapsed > timeout_s:
            raise ResourceError(
                f"waited {elapsed:.0f} s for {awaited}. End that process, or set TORCH_EXTENSIONS_DIR to a folder of "
                "your own; if no process builds there, delete the file"
            )
        if elapsed > next_line:
            log(f"waiting for {awaited}, {elapsed:.0f} of at most {timeout_s:g} s")
            next_line += _LOG_INTERVAL_S
        time.sleep(_POLL_S)


def _end_build(ended: threading.Event, own: set[int], timeout_s: float) -> None:
    """Kill the compiler at the deadline; torch's builder then raises an error."""
    if not ended.wait(timeout_s):
        processes.kill(set(processes.descendants(os.getpid())) - own)


def _file_system_time(folder: Path) -> float:
    """Return the present time by the clock of the file system, which may be on a different machine."""
    probe = folder / _GUARD
    probe.touch()
    return probe.stat().st_mtime


def _is_local(path: Path) -> bool:
    """Return whether the file system of a path is on this machine."""
    resolved = str(path.resolve())
    mounts = []
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        _, mount, kind, *_ = line.split(" ")
        if resolved == mount or resolved.startswith(mount.rstrip("/") + "/"):
            mounts.append((len(mount), kind))
    return max(mounts)[1] in _LOCAL_FILE_SYSTEMS if mounts else False
