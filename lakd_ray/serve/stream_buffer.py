"""The last seconds of audio of a stream."""

import asyncio
import io
import wave
from collections import deque

_PART_BYTES = 64 * 1024


class StreamBuffer:
    """The received samples of at least the last `max_seconds`, and the total number received.

    They are stored in parts: one array would be copied for each message of a fast client.
    """

    def __init__(self, rate: int, max_seconds: float):
        self.rate = rate
        self._max_frames = round(rate * max_seconds)
        self._channels = 1
        self._parts: deque[bytearray] = deque()
        self._stored_bytes = self._total_bytes = 0
        self.updated = asyncio.Event()
        self.is_closed = False

    def set_channels(self, channels: int) -> None:
        """Set the number of channels before the first samples; the decoder mixes them."""
        self._channels = channels

    @property
    def _frame_bytes(self) -> int:
        return 2 * self._channels

    def append(self, samples: bytes) -> None:
        """Append samples; a message may end in the middle of a sample."""
        if self._parts and len(self._parts[-1]) < _PART_BYTES:
            self._parts[-1] += samples
        else:
            self._parts.append(bytearray(samples))
        self._stored_bytes += len(samples)
        self._total_bytes += len(samples)
        # one frame more than `max_seconds`, of which the last may be incomplete
        needed = (self._max_frames + 1) * self._frame_bytes
        while self._stored_bytes - len(self._parts[0]) >= needed:
            self._stored_bytes -= len(self._parts.popleft())
        self.updated.set()

    def close(self) -> None:
        """Mark the end of the audio."""
        self.is_closed = True
        self.updated.set()

    def clear(self) -> None:
        """Free the memory of the samples."""
        self._parts.clear()
        self._stored_bytes = 0

    @property
    def total_seconds(self) -> float:
        """Duration of all received audio, including dropped samples."""
        return self._total_bytes // self._frame_bytes / self.rate

    def tail_as_wav(self, seconds: float) -> tuple[bytes, float, float]:
        """Return the last `seconds` as a WAV file, with its start and end in seconds since the start of the stream."""
        size = self._frame_bytes
        incomplete = self._total_bytes % size
        wanted = min(size * round(seconds * self.rate), (self._stored_bytes - incomplete) // size * size)
        tail, missing = deque[bytearray](), wanted + incomplete
        for part in reversed(self._parts):
            if missing <= 0:
                break
            tail.appendleft(part[-missing:])
            missing -= len(part)
        target = io.BytesIO()
        with wave.open(target, "wb") as file:
            file.setnchannels(self._channels)
            file.setsampwidth(2)
            file.setframerate(self.rate)
            file.writeframes(b"".join(tail)[:wanted])
        return target.getvalue(), self.total_seconds - wanted / size / self.rate, self.total_seconds
