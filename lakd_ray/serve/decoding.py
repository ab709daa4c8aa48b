"""Decodes what strangers send, in processes of its own.

A recording that makes the decoder crash, hang or ask for gigabytes ends one of these processes, not the endpoint: the
process is replaced, and the recording refused.
"""

import asyncio
import multiprocessing
import resource
from concurrent.futures import TimeoutError as Overdue
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from lakd_ray.audio import SAMPLE_RATE, Recording, read
from lakd_ray.errors import ClipError
from lakd_ray.serve.answering import MIN_SECONDS
from lakd_ray.serve.upload import RequestError

_MEGABYTE = 1 << 20
_PAGE = resource.getpagesize()


class Decoders:
    """A few decoding processes, kept warm. Close it, or use it as a context.

    Args:
        processes: how many.
        memory_mb: what one may allocate beyond what it has when it is warm.
        seconds: longest time for one recording.
    """

    def __init__(self, processes: int, *, memory_mb: int = 1024, seconds: float = 20.0):
        self._seconds = seconds
        self._pool = ProcessPool(
            processes,
            initializer=_limit,
            initargs=(memory_mb,),
            context=multiprocessing.get_context("forkserver"),  # forking a process with threads can deadlock the child
        )

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._pool.stop()  # type: ignore[no-untyped-call] # pebble leaves it untyped
        self._pool.join(timeout=10)

    async def warm(self) -> None:
        """Wait until the processes have loaded what they need."""
        await asyncio.wrap_future(self._pool.schedule(_nothing))

    async def read(self, content: bytes, max_seconds: float) -> Recording:
        """A recording from its bytes.

        Decodes no more than shows that it is too long: a small file can hold hours of silence.

        Raises:
            RequestError: 422 it cannot be decoded or is too short, 413 it is too long.
        """
        future = self._pool.schedule(_read, args=(content, max_seconds + 1), timeout=self._seconds)
        try:
            recording: Recording = await asyncio.wrap_future(future)
        except ClipError as error:
            raise RequestError(422, str(error)) from None
        except Overdue:
            raise RequestError(422, f"the recording was not decoded within {self._seconds:g} s") from None
        except (ProcessExpired, MemoryError):
            raise RequestError(422, "the recording cannot be decoded: its decoder broke down over it") from None
        seconds = len(recording.wave_T) / SAMPLE_RATE
        if seconds > max_seconds + 0.01:  # resampling may add a sample
            raise RequestError(413, f"the recording is longer than the limit of {max_seconds:g} s")
        if seconds < MIN_SECONDS:
            raise RequestError(422, f"the recording lasts {seconds:.3f} s, expected at least {MIN_SECONDS} s")
        return recording


def _limit(memory_mb: int) -> None:
    """Load what is needed, then let no recording have more than its share."""
    import torch
    import torchaudio.functional  # noqa: F401 -- loaded now, not while somebody waits

    torch.set_num_threads(1)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    most = virtual + memory_mb * _MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _nothing() -> None:
    pass


def _read(content: bytes, max_seconds: float) -> Recording:
    return read(content, where="the recording", max_seconds=max_seconds)
