"""Recordings read and decoded, under the limits of the endpoint.

In bulk that is done ahead of the model, and by processes that may die over a recording.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from lakd_ray.audio import Recording
from lakd_ray.audio import sources as recordings
from lakd_ray.audio.sandbox import SandboxPool
from lakd_ray.errors import ClipError, DataError
from lakd_ray.inference.recordings import decode_and_validate

_READ_THREADS = 6  # read while others are decoded: a bucket takes its time to answer
_PREFETCH_PER_THREAD = 4  # recordings that are ready or on their way, for each reader


class PrefetchingDecoder:
    """Opens recordings ahead of whoever takes them. Close it, or use it as a context.

    Args:
        decoders: processes that decode.
        max_seconds: longer recordings are refused.
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
        """End threads and processes; what is on its way is waited for."""
        self._pool.shutdown(cancel_futures=True)
        self._decoder_pool.close()

    def iter_recordings(self, sources: Sequence[str]) -> Iterator[Recording | ClipError]:
        """Each source's recording or why there is none, in their order."""
        coming: deque[Future[Recording | ClipError]] = deque()
        for source in sources:
            coming.append(self._pool.submit(self._read_and_decode, source))
            if len(coming) >= self._max_pending:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def _read_and_decode(self, source: str) -> Recording | ClipError:
        try:
            content = recordings.read_clip_source(source)
            recording: Recording = self._decoder_pool.call(decode_and_validate, content, self._max_seconds)
            return recording
        except ClipError as error:
            return error
        except DataError as error:  # a table that does not hold what it should
            return ClipError(str(error))
