"""Decodes what strangers send, in processes that may die over it."""

from typing import Self

from lakd_ray.audio import Recording, decode_recording
from lakd_ray.audio.sandbox import SandboxPool
from lakd_ray.errors import ClipError
from lakd_ray.inference.recordings import RECORDING_LABEL, validate_duration
from lakd_ray.serve.upload import RequestError


class RequestDecoder:
    """A few decoding processes, kept warm. Close it, or use it as a context.

    Args:
        processes: how many.
        memory_mb: what one may allocate beyond what it has when it is warm.
        seconds: longest time for one recording.
    """

    def __init__(self, num_processes: int, *, memory_mb: int = 1024, timeout_s: float = 20.0):
        self._pool = SandboxPool(num_processes, memory_mb=memory_mb, timeout_s=timeout_s)
        self.close, self.warmup = self._pool.close, self._pool.warmup

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def decode(self, content: bytes, max_seconds: float) -> Recording:
        """A recording from its bytes.

        Decodes no more than shows that it is too long: a small file can hold hours of silence.

        Raises:
            RequestError: 422 it cannot be decoded or is too short, 413 it is too long.
        """
        try:
            recording: Recording = await self._pool.call_async(
                decode_recording, content, source_name=RECORDING_LABEL, max_seconds=max_seconds + 1
            )
            return validate_duration(recording, max_seconds)
        except ClipError as error:
            raise RequestError(413 if error.kind == "long" else 422, str(error)) from None
