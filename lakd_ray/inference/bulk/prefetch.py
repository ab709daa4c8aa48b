"""Reads and decodes recordings ahead of the model, in sandboxed processes, with the limits of the endpoint."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from lakd_ray.audio import Recording
from lakd_ray.audio import sources as audio_sources
from lakd_ray.audio.sandbox import SandboxPool
from lakd_ray.errors import ClipError, DataError
from lakd_ray.inference.recordings import decode_and_validate

_READ_THREADS = 6  # threads that read while others wait for a decoder: object storage has a high latency
_PREFETCH_PER_THREAD = 4  # recordings decoded or in progress, for each thread


class PrefetchingDecoder:
    """Yields decoded recordings, which it prefetches. Close it, or use it as a context.

    Args:
        decoder_processes: number of decoding processes.
        max_seconds: longer recordings are rejected.
    """

    def __init__(self, decoder_processes: int, max_seconds: float):
        self._decoder_pool = SandboxPool(decoder_processes)
        self._max_seconds = max_seconds
        self._max_pending = _PREFETCH_PER_THREAD * (_READ_THREADS + decoder_processes)
        self._pool = ThreadPoolExecutor(_READ_THREADS + decoder_processes, "open")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop threads and processes, after the recordings in progress."""
        self._pool.shutdown(cancel_futures=True)
        self._decoder_pool.close()

    def iter_recordings(self, sources: Sequence[str]) -> Iterator[Recording | ClipError]:
        """Yield the recording of each source in order, or the error in its place."""
        pending: deque[Future[Recording | ClipError]] = deque()
        for source in sources:
            pending.append(self._pool.submit(self._read_and_decode, source))
            if len(pending) >= self._max_pending:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _read_and_decode(self, source: str) -> Recording | ClipError:
        try:
            content = audio_sources.read_clip_source(source)
            recording: Recording = self._decoder_pool.call(decode_and_validate, content, self._max_seconds)
            return recording
        except ClipError as error:
            return error
        except DataError as error:  # an embedded recording whose table is not valid
            return ClipError(str(error))
