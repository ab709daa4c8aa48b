"""Decode untrusted audio of HTTP requests in sandboxed worker processes."""

from typing import Self

from lakd_ray.audio import Recording, decode_recording
from lakd_ray.audio.sandbox import SandboxPool
from lakd_ray.errors import ClipError
from lakd_ray.inference.recordings import RECORDING_LABEL, validate_duration
from lakd_ray.serve.errors import RequestError


class RequestDecoder:
    """A pool of warm decoding processes; close it, or use it as a context manager.

    Args:
        num_processes: number of processes.
        memory_mb: memory that one process may allocate beyond what it uses when warm.
        timeout_s: time limit for one recording, in seconds.
    """

    def __init__(self, num_processes: int, *, memory_mb: int = 1024, timeout_s: float = 20.0):
        self._pool = SandboxPool(num_processes, memory_mb=memory_mb, timeout_s=timeout_s)
        self.close, self.warmup = self._pool.close, self._pool.warmup

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def decode(self, content: bytes, max_seconds: float) -> Recording:
        """Decode an encoded recording and check its duration.

        Decoding stops one second past the limit, because a small file can hold hours of silence.

        Raises:
            RequestError: 422 the recording cannot be decoded or is too short, 413 it is too long, 503 the server has no
                memory or no free descriptors.
        """
        try:
            recording: Recording = await self._pool.call_async(
                decode_recording, content, source_name=RECORDING_LABEL, max_seconds=max_seconds + 1
            )
            return validate_duration(recording, max_seconds)
        except ClipError as error:
            raise RequestError(413 if error.kind == "long" else 422, str(error)) from None
        except OSError as error:  # no memory, no free descriptors, or no room for a file
            raise RequestError(503, f"the server has no resources to decode a recording ({error.strerror})") from error
