"""Bound the memory that uploads take in the ingress, by reading large bodies only while there is room for them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.upload import MEGABYTE

SMALL_BYTES = MEGABYTE  # smaller uploads never wait for larger ones: the number of requests bounds their memory
MAX_WAIT_S = 10.0
MIN_FORM_BYTES = 10 * MEGABYTE  # counted for each form: compressed recordings need many times their size when decoded
MEMORY_OF_BYTE = 3  # bytes of memory for one of an upload: itself, and 32-bit samples for its 16-bit ones


class ByteBudget:
    """Memory that concurrent uploads share, admitted in the order of their arrival.

    Args:
        total: the memory in bytes. An upload that needs more is admitted alone.
        max_wait_s: longest wait for room in seconds.
    """

    def __init__(self, total: int, *, max_wait_s: float = MAX_WAIT_S):
        self._total = self._free = total
        self._max_wait_s = max_wait_s
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        """Wait until there is memory for an upload of `size` bytes, and hold it in the context.

        Raises:
            RequestError: 503 there was no room in time.
        """
        if size <= SMALL_BYTES:
            yield
            return
        size = min(MEMORY_OF_BYTE * size, self._total)
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((size, admitted))
        self._admit()
        has_memory = False
        try:
            async with asyncio.timeout(self._max_wait_s):
                await admitted
            has_memory = True
        except TimeoutError:
            raise RequestError(
                503, "other large uploads take all memory: send the request again, or less audio"
            ) from None
        finally:
            if not has_memory:
                if not admitted.cancelled():  # admitted in the moment in which the request was canceled
                    self._free += size
                self._admit()
        try:
            yield
        finally:
            self._free += size
            self._admit()

    def _admit(self) -> None:
        while self._queue:
            size, admitted = self._queue[0]
            if not admitted.cancelled():
                if size > self._free:
                    return
                self._free -= size
                admitted.set_result(None)
            self._queue.popleft()
