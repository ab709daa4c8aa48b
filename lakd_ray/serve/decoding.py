"""Decodes what strangers send, in processes that may die over it."""

from typing import Self

from lakd_ray.audio import Recording, read
from lakd_ray.audio.apart import Apart
from lakd_ray.errors import ClipError
from lakd_ray.serve.answering import WHERE, checked
from lakd_ray.serve.upload import RequestError


class Decoders:
    """A few decoding processes, kept warm. Close it, or use it as a context.

    Args:
        processes: how many.
        memory_mb: what one may allocate beyond what it has when it is warm.
        seconds: longest time for one recording.
    """

    def __init__(self, processes: int, *, memory_mb: int = 1024, seconds: float = 20.0):
        self._apart = Apart(processes, memory_mb=memory_mb, seconds=seconds)
        self.close, self.warm = self._apart.close, self._apart.warm

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def read(self, content: bytes, max_seconds: float) -> Recording:
        """A recording from its bytes.

        Decodes no more than shows that it is too long: a small file can hold hours of silence.

        Raises:
            RequestError: 422 it cannot be decoded or is too short, 413 it is too long.
        """
        try:
            recording: Recording = await self._apart.ask(read, content, where=WHERE, max_seconds=max_seconds + 1)
            return checked(recording, max_seconds)
        except ClipError as error:
            raise RequestError(413 if error.kind == "long" else 422, str(error)) from None
