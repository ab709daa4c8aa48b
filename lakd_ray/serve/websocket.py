"""Sound that is answered while it is recorded.

The client sends binary messages: 16-bit little-endian mono samples (`format=pcm16`, at `rate` Hz), or what a browser's
MediaRecorder makes (`format=webm`, where the server has ffmpeg). It is sent a `StreamResult` as JSON every `hop_s` seconds of
sound, about the last `window_s`, or less often if the model is slower; after its text message {"type": "end"} one about
everything, and then the stream is closed. Where the endpoint asks for keys, the first message is {"key": KEY}.

What goes wrong is told as {"error": ...} before the stream is closed, with 1008 (the client's fault), 1013 (too many
streams, try again) or 1011.
"""

import asyncio
import io
import json
import shutil
import wave
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lakd_ray.config import ServeConfig
from lakd_ray.inference.recordings import MIN_SECONDS, PredictOptions
from lakd_ray.serve.auth import ApiKeys
from lakd_ray.serve.decoding import RequestDecoder
from lakd_ray.serve.messages import ErrorResponse, StreamResult
from lakd_ray.serve.model import ModelHandle, predict_recording
from lakd_ray.serve.prometheus import Metrics
from lakd_ray.serve.upload import RequestError

_MAX_MESSAGE_BYTES = 1 << 20  # bytes
_FFMPEG_RATE = 16_000
_CLOSE_POLICY_VIOLATION, _CLOSE_INTERNAL_ERROR, _CLOSE_TRY_AGAIN_LATER = 1008, 1011, 1013  # RFC 6455


class StreamParams(BaseModel):
    """The query of a stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = Field("pcm16", pattern="^(pcm16|webm)$")
    rate: int = Field(16_000, ge=8_000, le=192_000)
    language: str | None = Field(None, pattern="^[a-z]{2,3}$")
    window_s: float = Field(3.0, ge=0.25, le=60)
    hop_s: float = Field(1.0, ge=0.1, le=60)


class _AudioBuffer:
    """What has come: the last `keep_s` seconds of it, and how much in all."""

    def __init__(self, rate: int, max_seconds: float):
        self.rate = rate
        self._max_bytes = 2 * round(rate * max_seconds)
        self._bytes = bytearray()
        self._dropped_bytes = 0
        self.updated = asyncio.Event()
        self.is_closed = False

    def append(self, samples: bytes) -> None:
        """More samples; half a sample waits for its other half."""
        self._bytes += samples
        over = len(self._bytes) - self._max_bytes
        if over > self.rate:  # half a second at a time, not at every message
            over -= over % 2
            del self._bytes[:over]
            self._dropped_bytes += over
        self.updated.set()

    def close(self) -> None:
        """Nothing more comes."""
        self.is_closed = True
        self.updated.set()

    @property
    def total_seconds(self) -> float:
        """How much has come."""
        return (self._dropped_bytes + len(self._bytes)) // 2 / self.rate

    def tail_as_wav(self, seconds: float) -> tuple[bytes, float, float]:
        """The last of it as a WAV file, and where that begins and ends."""
        whole = bytes(self._bytes[: len(self._bytes) // 2 * 2])
        part = whole[-2 * round(seconds * self.rate) :]
        target = io.BytesIO()
        with wave.open(target, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.rate)
            file.writeframes(part)
        return target.getvalue(), self.total_seconds - len(part) / 2 / self.rate, self.total_seconds


async def handle_stream(
    socket: WebSocket, model: ModelHandle, config: ServeConfig, keys: ApiKeys, decoder: RequestDecoder, metrics: Metrics
) -> None:
    """Answer a stream to its end."""
    await socket.accept()
    if metrics.open_streams >= config.max_streams:
        await _close_with_error(
            socket, _CLOSE_TRY_AGAIN_LATER, f"{config.max_streams} streams are open already; try again later"
        )
        return
    with metrics.track_stream():
        try:
            wanted = StreamParams.model_validate(dict(socket.query_params))
            await _authenticate(socket, keys, config.deadline_s)
            await _run_stream(socket, wanted, model, config, decoder)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            await _close_with_error(socket, _CLOSE_POLICY_VIOLATION, found)
        except RequestError as error:
            await _close_with_error(
                socket, _CLOSE_TRY_AGAIN_LATER if error.status == 503 else _CLOSE_POLICY_VIOLATION, error.message
            )
        except WebSocketDisconnect:
            pass
        except Exception as error:  # the client is told, as in HTTP, and the log has it
            await _close_with_error(socket, _CLOSE_INTERNAL_ERROR, f"internal error ({type(error).__name__})")
            raise


async def _close_with_error(socket: WebSocket, code: int, reason: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):  # it may be closed already
        await socket.send_text(ErrorResponse(error=reason).model_dump_json())
        await socket.close(code)


@asynccontextmanager
async def _timeout(seconds: float, message: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RequestError(408, message) from None


def _idle_message(seconds: float) -> str:
    return f"nothing came for {seconds:g} s"


async def _authenticate(socket: WebSocket, keys: ApiKeys, timeout_s: float) -> None:
    """Ask for the key, where one is needed and no header has it: a browser cannot send headers here."""
    if not keys.required or keys.authorizes(socket.headers.get("authorization")):
        return
    async with _timeout(timeout_s, _idle_message(timeout_s)):
        message = await _receive_message(socket)
    if not isinstance(message, dict) or not keys.is_valid(str(message.get("key", ""))):
        raise RequestError(401, 'a key is needed: send {"key": KEY} as the first message')


async def _receive_message(socket: WebSocket) -> bytes | dict[str, Any]:
    """The next message: samples, or what a text message says."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    content: bytes | str = message.get("bytes") or message.get("text") or b""
    if len(content) > _MAX_MESSAGE_BYTES:
        raise RequestError(413, f"a message of {len(content)} bytes, expected at most {_MAX_MESSAGE_BYTES}")
    if isinstance(content, bytes):
        return content
    try:
        said = json.loads(content)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise RequestError(422, 'a text message is a JSON object: {"type": "end"} or {"key": KEY}')
    return said


async def _run_stream(
    socket: WebSocket, params: StreamParams, model: ModelHandle, config: ServeConfig, decoder: RequestDecoder
) -> None:
    rate = _FFMPEG_RATE if params.format == "webm" else params.rate
    sound = _AudioBuffer(rate, max(config.max_seconds, params.window_s))

    async def send_result(seconds: float, *, final: bool) -> None:
        content, start_s, end_s = sound.tail_as_wav(seconds)
        recording = await decoder.decode(content, seconds)
        answer = await predict_recording(model, recording, PredictOptions(language=params.language))
        told = {
            name: getattr(answer, name)
            for name in StreamResult.model_fields
            if name not in ("final", "start_s", "end_s")
        }
        await socket.send_text(StreamResult(final=final, start_s=start_s, end_s=end_s, **told).model_dump_json())

    async def receive_audio() -> None:
        async with _timeout(config.max_stream_s, f"the stream is longer than {config.max_stream_s:g} s"):
            if params.format == "webm":
                await _decode_webm(socket, sound, config.deadline_s)
            else:
                async for samples in _receive_samples(socket, config.deadline_s):
                    sound.append(samples)
        sound.close()

    async def emit_rolling_results() -> None:
        answered = 0.0
        while not sound.is_closed:
            await sound.updated.wait()
            sound.updated.clear()
            if not sound.is_closed and sound.total_seconds - answered >= params.hop_s:
                answered = sound.total_seconds
                await send_result(params.window_s, final=False)

    await _run_concurrently(receive_audio(), emit_rolling_results())
    if sound.total_seconds < MIN_SECONDS:
        raise RequestError(422, f"the stream lasts {sound.total_seconds:.3f} s, expected at least {MIN_SECONDS} s")
    await send_result(config.max_seconds, final=True)
    await socket.close()


async def _run_concurrently(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Until all is done or something fails; nothing is left running then.

    A TaskGroup of Python 3.11 leaves its own task marked as cancelled, when a child fails while it waits for them.
    """
    tasks = [asyncio.create_task(one) for one in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _receive_samples(socket: WebSocket, idle_timeout_s: float) -> AsyncIterator[bytes]:
    """Binary messages until the end is told."""
    while True:
        async with _timeout(idle_timeout_s, _idle_message(idle_timeout_s)):
            message = await _receive_message(socket)
        if isinstance(message, bytes):
            yield message
        elif message.get("type") == "end":
            return


class _FfmpegDecoder:
    """The program, fed through a pipe."""

    def __init__(self, process: asyncio.subprocess.Process):
        self._process = process

    @classmethod
    async def start(cls) -> Self:
        """Start it."""
        program = shutil.which("ffmpeg")
        if program is None:
            raise RequestError(415, "format=webm needs ffmpeg, which this server does not have: send format=pcm16")
        command = ["-nostdin", "-hide_banner", "-loglevel", "error", "-threads", "1", "-protocol_whitelist", "pipe"]
        command += ["-f", "matroska", "-i", "pipe:0", "-map", "0:a:0", "-ac", "1", "-ar", str(_FFMPEG_RATE)]
        command += ["-f", "s16le", "-flush_packets", "1", "pipe:1"]
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(program, *command, stdin=pipe, stdout=pipe, stderr=pipe))

    async def write(self, content: bytes) -> None:
        """More of the container."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):  # it has ended: its exit status tells why
            self._process.stdin.write(content)
            await self._process.stdin.drain()

    async def read_samples(self, buffer: _AudioBuffer) -> None:
        """All that it makes of it."""
        assert self._process.stdout is not None
        while part := await self._process.stdout.read(1 << 16):
            buffer.append(part)

    async def close(self) -> None:
        """Nothing more is fed.

        Raises:
            RequestError: 422 what was fed is not WebM.
        """
        assert self._process.stdin is not None and self._process.stderr is not None
        self._process.stdin.close()
        said = (await self._process.stderr.read()).decode(errors="replace").strip().splitlines() or ["no reason"]
        if await self._process.wait() != 0:
            raise RequestError(422, f"cannot decode the stream as WebM: ffmpeg says {said[-1][-200:]!r}")

    async def kill(self) -> None:
        """End it, whatever it does."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


async def _decode_webm(socket: WebSocket, buffer: _AudioBuffer, idle_timeout_s: float) -> None:
    program = await _FfmpegDecoder.start()
    try:
        made = asyncio.create_task(program.read_samples(buffer))
        async for content in _receive_samples(socket, idle_timeout_s):
            await program.write(content)
        await program.close()
        await made
    finally:
        await program.kill()
