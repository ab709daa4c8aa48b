"""Call functions in sandboxed worker processes, to decode untrusted or suspicious recordings.

A recording that makes the decoder crash, hang or allocate gigabytes ends a worker process and not the caller. The
worker is replaced, and the recording is rejected.
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
_PRELOADED_MODULES = ["torch", "torchaudio.functional", "lakd_ray.audio"]  # loaded once, so a worker starts in moments


class SandboxPool:
    """A pool of warm worker processes; close it, or use it as a context manager.

    Args:
        num_processes: number of worker processes.
        memory_mb: memory that a worker may allocate beyond its size after warm-up.
        timeout_s: time limit of one call in seconds.
    """

    def __init__(self, num_processes: int = 1, *, memory_mb: int = 4096, timeout_s: float = 180.0) -> None:
        self._memory_mb, self._timeout_s = memory_mb, timeout_s
        context = multiprocessing.get_context("forkserver")  # forking a process with threads can deadlock the child
        context.set_forkserver_preload(_PRELOADED_MODULES)
        self._pool = ProcessPool(num_processes, initializer=_init_worker, initargs=(memory_mb,), context=context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes, including running calls."""
        self._pool.stop()  # type: ignore[no-untyped-call] # untyped in pebble
        self._pool.join(timeout=10)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a module-level function in a worker and return its result; its exceptions are raised here.

        Raises:
            ClipError: the call killed its worker, exceeded its time limit or its memory limit.
        """
        with self._translate_errors():
            return self._submit(function, args, kwargs).result()

    async def call_async(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function as `call` does, without blocking the event loop.

        Cancellation ends the wait but not the call, which finishes within its time limit. Ending it would cost a
        worker, so that clients that disconnect could keep all workers busy with their start.
        """
        with self._translate_errors():
            return await asyncio.shield(asyncio.wrap_future(self._submit(function, args, kwargs)))

    async def warmup(self) -> None:
        """Wait until a worker has loaded its libraries."""
        await self.call_async(_noop)

    def _submit(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Future[Any]":
        future: Future[Any] = self._pool.schedule(function, args=args, kwargs=kwargs, timeout=self._timeout_s)
        return future

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except FutureTimeoutError:
            raise ClipError(f"the recording was not decoded within {self._timeout_s:g} s") from None
        except ProcessExpired:
            raise ClipError("the recording cannot be decoded: it crashed the decoder") from None
        except MemoryError:
            raise ClipError(f"the recording needs more than {self._memory_mb} MB to be decoded") from None


def _init_worker(memory_mb: int) -> None:
    """Load the libraries, limit the memory of the worker, and make it exit with its parent."""
    import torch
    import torchaudio.functional  # noqa: F401 -- loaded here, so that the first call does not wait for it

    torch.set_num_threads(1)
    virtual_size = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_SIZE
    limit = virtual_size + memory_mb * _MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent ends: a parent that is killed cannot end its workers, which would wait forever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _noop() -> None:
    pass
