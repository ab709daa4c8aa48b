"""Recordings read and decoded, under the limits of the endpoint.

In bulk that is done ahead of the model, and by processes that may die over a recording.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from lakd_ray.audio import Recording, read
from lakd_ray.audio.apart import Apart
from lakd_ray.corpora import recordings
from lakd_ray.errors import ClipError, DataError
from lakd_ray.serve.answering import WHERE, checked

_READERS = 6  # read while others are decoded: a bucket takes its time to answer
_AHEAD = 4  # recordings that are ready or on their way, for each reader


def decoded(content: bytes, max_seconds: float) -> Recording:
    """A recording from its bytes.

    Raises:
        ClipError: it cannot be decoded, or is shorter or longer than it may be.
    """
    return checked(read(content, where=WHERE, max_seconds=max_seconds + 1), max_seconds)


class Opener:
    """Opens recordings ahead of whoever takes them. Close it, or use it as a context.

    Args:
        decoders: processes that decode.
        max_seconds: longer recordings are refused.
    """

    def __init__(self, decoders: int, max_seconds: float):
        self._apart = Apart(decoders)
        self._max_seconds = max_seconds
        self._ahead = _AHEAD * (_READERS + decoders)
        self._pool = ThreadPoolExecutor(_READERS + decoders, "open")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End threads and processes; what is on its way is waited for."""
        self._pool.shutdown(cancel_futures=True)
        self._apart.close()

    def open(self, sources: Sequence[str]) -> Iterator[Recording | ClipError]:
        """Each source's recording or why there is none, in their order."""
        coming: deque[Future[Recording | ClipError]] = deque()
        for source in sources:
            coming.append(self._pool.submit(self._one, source))
            if len(coming) >= self._ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def _one(self, source: str) -> Recording | ClipError:
        try:
            content = recordings.content(source)
            recording: Recording = self._apart.call(decoded, content, self._max_seconds)
            return recording
        except ClipError as error:
            return error
        except DataError as error:  # a table that does not hold what it should
            return ClipError(str(error))
