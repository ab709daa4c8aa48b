"""Signals that end a command, turned into one exception. No other module of the package installs a handler.

Ray, Ray Train, Ray Tune and other libraries replace the handlers of a process and do not restore them. Within
`interruptible` and `preserved_handlers` they cannot.
"""

import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lakd_ray import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C; service managers and batch systems; a closed terminal; the warning of `sbatch --signal=USR1@SECONDS`."""

_REPEAT_S = 1.0  # `timeout` and terminals send the same request to a process and to its group


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command after its state is saved; `signum` is its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


_first: int | None = None  # number of the signal that ends the command


def received() -> int | None:
    """Return the number of the signal that ends the command, or None before there is one."""
    return _first


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the main thread on the first of `SIGNALS`; a second one ends the process at once.

    SIGHUP stays ignored where it is (`nohup`). Outside the main thread, which alone can have handlers, and in a block
    within a block, this does nothing.
    """
    global _first  # noqa: PLW0603 -- handlers belong to the process
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _interrupt:
        yield
        return
    is_detached = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    handled = [signum for signum in SIGNALS if not (signum == signal.SIGHUP and is_detached)]
    set_handler = signal.signal
    previous = {signum: set_handler(signum, _interrupt) for signum in handled}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_on_second_signal, args=(reader, handled), name="signals", daemon=True).start()
    try:
        with preserved_handlers():
            yield
    finally:
        signal.set_wakeup_fd(descriptor)
        writer.close()
        for signum, handler in previous.items():
            set_handler(signum, signal.SIG_DFL if handler is None else handler)  # None: not installed by Python
        _first = None


@contextmanager
def preserved_handlers() -> Iterator[None]:
    """Keep the handlers of `SIGNALS` while libraries run that replace them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    set_handler: Callable[..., Any] = signal.signal

    def set_other_handler(signalnum: int, handler: Any) -> Any:
        return signal.getsignal(signalnum) if signalnum in SIGNALS else set_handler(signalnum, handler)

    signal.signal = set_other_handler
    try:
        yield
    finally:
        signal.signal = set_handler


@contextmanager
def shielded_children() -> Iterator[None]:
    """Give each process that Ray starts within the block a process group of its own.

    Terminals and `timeout` send a signal to all processes of a group. Those of a cluster must outlive it until the
    driver has saved its state; they end with the driver in any case. `subprocess` calls the hook for processes with a
    `preexec_fn`, as all of Ray have.
    """
    global _shields_children  # noqa: PLW0603 -- hooks of a fork belong to the process
    _shields_children = True
    try:
        yield
    finally:
        _shields_children = False


_shields_children = False


def _shield_child() -> None:
    if _shields_children:
        os.setpgid(0, 0)


os.register_at_fork(after_in_child=_shield_child)


def exit_now(status: int) -> None:
    """End the process without the exit handlers of libraries, some of which crash after an interruption."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a closed terminal, or a full disk
            stream.flush()
    os._exit(status)


def interrupt_main_thread() -> None:
    """Interrupt the main thread from a thread that has stored an error, which the main thread then raises instead."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _interrupt(signum: int, _: object) -> None:
    global _first  # noqa: PLW0603 -- as above
    if signum == signal.SIGHUP:
        _leave_terminal()
    if _first is None:
        _first = signum
        raise Interrupted(signum)


def _end_on_second_signal(reader: socket.socket, handled: list[signal.Signals]) -> None:
    """End the process and all that it has started at once on a second signal.

    In a thread, because the main thread may wait in a library that never returns to Python, which runs handlers.

    Args:
        reader: receives the number of each signal as a byte.
        handled: the signals that end the process.
    """
    first: tuple[int, float] | None = None
    with reader:
        while numbers := reader.recv(16):
            for number in set(numbers) & set(handled):
                if first is None:
                    first = number, time.monotonic()
                elif time.monotonic() - first[1] > _REPEAT_S:
                    with suppress(OSError, ValueError, AttributeError):  # not `print`: its lock may be taken
                        os.write(sys.stderr.fileno(), b"ended at once by a second signal\n")
                    processes.kill(processes.descendants(os.getpid()))  # Ray's agents would outlive it for a minute
                    os._exit(128 + first[0])


def _leave_terminal() -> None:
    """Discard further output to a terminal, which is closed: to write to it would be an error."""
    for name in ("stdout", "stderr"):
        with suppress(OSError, ValueError, AttributeError):  # replaced by an object without a descriptor
            if stat.S_ISCHR(os.fstat(getattr(sys, name).fileno()).st_mode):
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 -- until the process ends
