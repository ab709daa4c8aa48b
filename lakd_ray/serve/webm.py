"""Decode the WebM of a stream with ffmpeg while it arrives."""

import asyncio
import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.audio.ffmpeg import (
    WAV_HEADER_BYTES,
    limit_process,
    num_wav_channels,
    sandbox_options,
    webm_stream_command,
)
from lakd_ray.serve.errors import RequestError

_MAX_LOG_BYTES = 4096


class WebmDecoder:
    """An ffmpeg process that decodes WebM from a pipe to 16-bit samples at 16 kHz, with limits on memory and time."""

    def __init__(self, process: asyncio.subprocess.Process):
        self._process = process
        self._log = b""
        self._log_reader = asyncio.create_task(self._read_log())

    @classmethod
    async def start(cls, max_stream_s: float) -> Self:
        """Start the process that decodes a stream.

        Args:
            max_stream_s: longest stream in seconds, which is also the limit of its CPU time.

        Raises:
            RequestError: 415 ffmpeg is not installed.
        """
        program = shutil.which("ffmpeg")
        if program is None:
            raise RequestError(
                415, "format=webm needs ffmpeg, which is not installed on this server: send format=pcm16"
            )
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *webm_stream_command(program, SAMPLE_RATE),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            limit=1 << 16,
            **sandbox_options(),
        )
        with suppress(ProcessLookupError):  # it has ended: `close` reports its error
            limit_process(process.pid, max_stream_s)
        return cls(process)

    async def write(self, content: bytes) -> None:
        """Write a part of the WebM container."""
        assert self._process.stdin is not None
        if self._process.stdin.is_closing():  # the process has ended: `close` reports its error
            return
        with suppress(ConnectionError):  # it ends now
            self._process.stdin.write(content)
            await self._process.stdin.drain()

    async def read_samples(self, start: Callable[[int], None], append: Callable[[bytes], None]) -> None:
        """Pass the number of channels to `start`, and decoded samples to `append` until the process ends."""
        assert self._process.stdout is not None
        try:
            header = await self._process.stdout.readexactly(WAV_HEADER_BYTES)
        except asyncio.IncompleteReadError:
            return  # the process has ended: `close` reports its error
        start(num_wav_channels(header))
        while samples := await self._process.stdout.read(1 << 16):
            append(samples)

    async def close(self) -> None:
        """End the input and wait for the process.

        Raises:
            RequestError: 422 the input is not WebM.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._log_reader
        lines = self._log.decode(errors="replace").strip().splitlines() or ["no message"]
        if await self._process.wait() != 0:
            raise RequestError(422, f"cannot decode the stream as WebM, the error of ffmpeg is {lines[-1][-200:]!r}")

    async def kill(self) -> None:
        """Kill the process if it is still running."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self._log_reader

    async def _read_log(self) -> None:
        """Read the messages of ffmpeg while it runs, because a full pipe would stop it, and store the end of them."""
        assert self._process.stderr is not None
        while part := await self._process.stderr.read(_MAX_LOG_BYTES):
            self._log = (self._log + part)[-_MAX_LOG_BYTES:]
