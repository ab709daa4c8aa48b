"""Calls in processes that may die: for recordings of strangers, and for those of one's own that are suspected.

A recording that makes its decoder crash, hang or ask for gigabytes ends one of these processes, not the one that asked:
the process is replaced, and the recording refused.
"""

import asyncio
import multiprocessing
import os
import resource
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, Self

from pebble import ProcessExpired, ProcessPool

from lakd_ray.errors import ClipError

_MEGABYTE = 1 << 20
_PAGE_SIZE = resource.getpagesize()


class SandboxPool:
    """A few processes, kept warm. Close it, or use it as a context.

    Args:
        processes: how many.
        memory_mb: what one may allocate beyond what it has when it is warm.
        seconds: longest time for one call.
    """

    def __init__(self, num_processes: int = 1, *, memory_mb: int = 4096, timeout_s: float = 180.0) -> None:
        self._memory_mb, self._timeout_s = memory_mb, timeout_s
        self._pool = ProcessPool(
            num_processes,
            initializer=_init_worker,
            initargs=(memory_mb,),
            context=multiprocessing.get_context("forkserver"),  # forking a process with threads can deadlock the child
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.stop()  # type: ignore[no-untyped-call] # pebble leaves it untyped
        self._pool.join(timeout=10)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A function of a module, called there; raises what it raises.

        Raises:
            ClipError: it killed the process, was not done in time or needed too much memory.
        """
        with self._translate_errors():
            return self._submit(function, args, kwargs).result()

    async def call_async(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The same, awaited; whoever stops waiting ends the call."""
        with self._translate_errors():
            return await asyncio.wrap_future(self._submit(function, args, kwargs))

    async def warmup(self) -> None:
        """Wait until a process has loaded what it needs."""
        await self.call_async(_noop)

    def _submit(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Future[Any]":
        found: Future[Any] = self._pool.schedule(function, args=args, kwargs=kwargs, timeout=self._timeout_s)
        return found

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except FutureTimeoutError:
            raise ClipError(f"the recording was not decoded within {self._timeout_s:g} s") from None
        except ProcessExpired:
            raise ClipError("the recording cannot be decoded: its decoder broke down over it") from None
        except MemoryError:
            raise ClipError(f"the recording needs more than {self._memory_mb} MB to be decoded") from None


def _init_worker(memory_mb: int) -> None:
    """Load what is needed, then let no recording have more than its share, and outlive nobody."""
    import torch
    import torchaudio.functional  # noqa: F401 -- loaded now, not while somebody waits

    torch.set_num_threads(1)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_SIZE
    most = virtual + memory_mb * _MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Whoever is killed cannot end its processes, and they would wait for it for ever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _noop() -> None:
    pass
