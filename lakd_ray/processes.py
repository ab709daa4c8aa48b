"""Identify processes, so that a different process on the same machine can see whether one is still running."""

import os
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessId:
    """The identity of a process; its number alone is not enough, because numbers are used again."""

    host: str
    machine: str
    """Identifies the running system and, in a container, its own numbering of processes; empty if it has none."""
    pid: int
    started: str
    """Start of the process since the start of the system, in clock ticks; empty where it is not known."""

    @classmethod
    def current(cls) -> "ProcessId":
        """Return the identity of this process."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, (_stat(pid) or ("", ""))[1])

    @property
    def on_this_machine(self) -> bool:
        """Whether `is_alive` can find the process."""
        return self.host == socket.gethostname() and self.machine == _machine()

    @property
    def is_alive(self) -> bool:
        """Whether a process of this machine runs; one that has ended but has not been waited for does not."""
        if self.started:
            stat = _stat(self.pid)
            return stat is not None and stat[1] == self.started and stat[0] not in "ZXx"
        return is_alive(self.pid)

    @property
    def is_suspended(self) -> bool:
        """Whether a process of this machine was stopped by a signal, for instance by Ctrl-Z."""
        stat = _stat(self.pid)
        return stat is not None and stat[0] in "Tt"


def is_alive(pid: int) -> bool:
    """Return whether there is a process with this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def descendants(pid: int) -> list[int]:
    """Return the numbers of the processes that a process has started, and of those that they have started."""
    found: list[int] = []
    with suppress(OSError):  # ended meanwhile
        for task in (_PROC / str(pid) / "task").iterdir():
            children = (task / "children").read_text(encoding="ascii").split()
            for child in map(int, children):
                found += [child, *descendants(child)]
    return found


def kill(pids: Iterable[int]) -> None:
    """End processes with SIGKILL, if they still run."""
    for pid in pids:
        with suppress(ProcessLookupError):  # ended meanwhile
            os.kill(pid, signal.SIGKILL)


def _machine() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str] | None:
    """Return the state and the start of a process; None if there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may have spaces and parentheses
    return fields[0], fields[19]
