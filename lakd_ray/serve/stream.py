"""Sound that is answered while it is recorded.

The client sends binary messages: 16-bit little-endian mono samples (`format=pcm16`, at `rate` Hz), or what a browser's
MediaRecorder makes (`format=webm`, where the server has ffmpeg). It is sent a `Heard` as JSON every `hop_s` seconds of
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

from lakd_ray.config import Serve
from lakd_ray.serve import answering
from lakd_ray.serve.answering import MIN_SECONDS, Model
from lakd_ray.serve.answers import Heard, Problem
from lakd_ray.serve.decoding import Decoders
from lakd_ray.serve.keys import Keys
from lakd_ray.serve.meters import Meters
from lakd_ray.serve.upload import RequestError

_MAX_MESSAGE = 1 << 20  # bytes
_FFMPEG_RATE = 16_000
_FAULT, _BROKEN, _LATER = 1008, 1011, 1013  # RFC 6455


class Wanted(BaseModel):
    """The query of a stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = Field("pcm16", pattern="^(pcm16|webm)$")
    rate: int = Field(16_000, ge=8_000, le=192_000)
    language: str | None = Field(None, pattern="^[a-z]{2,3}$")
    window_s: float = Field(3.0, ge=0.25, le=60)
    hop_s: float = Field(1.0, ge=0.1, le=60)


class _Sound:
    """What has come: the last `keep_s` seconds of it, and how much in all."""

    def __init__(self, rate: int, keep_s: float):
        self.rate = rate
        self._keep = 2 * round(rate * keep_s)
        self._bytes = bytearray()
        self._dropped = 0
        self.more = asyncio.Event()
        self.ended = False

    def add(self, samples: bytes) -> None:
        """More samples; half a sample waits for its other half."""
        self._bytes += samples
        over = len(self._bytes) - self._keep
        if over > self.rate:  # half a second at a time, not at every message
            over -= over % 2
            del self._bytes[:over]
            self._dropped += over
        self.more.set()

    def end(self) -> None:
        """Nothing more comes."""
        self.ended = True
        self.more.set()

    @property
    def seconds(self) -> float:
        """How much has come."""
        return (self._dropped + len(self._bytes)) // 2 / self.rate

    def last(self, seconds: float) -> tuple[bytes, float, float]:
        """The last of it as a WAV file, and where that begins and ends."""
        whole = bytes(self._bytes[: len(self._bytes) // 2 * 2])
        part = whole[-2 * round(seconds * self.rate) :]
        target = io.BytesIO()
        with wave.open(target, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.rate)
            file.writeframes(part)
        return target.getvalue(), self.seconds - len(part) / 2 / self.rate, self.seconds


async def serve(socket: WebSocket, model: Model, limits: Serve, keys: Keys, decoders: Decoders, meters: Meters) -> None:
    """Answer a stream to its end."""
    await socket.accept()
    if meters.open_streams >= limits.max_streams:
        await _refuse(socket, _LATER, f"{limits.max_streams} streams are open already; try again later")
        return
    with meters.streaming():
        try:
            wanted = Wanted.model_validate(dict(socket.query_params))
            await _greet(socket, keys, limits.deadline_s)
            await _answer(socket, wanted, model, limits, decoders)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            await _refuse(socket, _FAULT, found)
        except RequestError as error:
            await _refuse(socket, _LATER if error.status == 503 else _FAULT, error.message)
        except WebSocketDisconnect:
            pass
        except Exception as error:  # the client is told, as in HTTP, and the log has it
            await _refuse(socket, _BROKEN, f"internal error ({type(error).__name__})")
            raise


async def _refuse(socket: WebSocket, code: int, reason: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):  # it may be closed already
        await socket.send_text(Problem(error=reason).model_dump_json())
        await socket.close(code)


@asynccontextmanager
async def _at_most(seconds: float, otherwise: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RequestError(408, otherwise) from None


def _silent(seconds: float) -> str:
    return f"nothing came for {seconds:g} s"


async def _greet(socket: WebSocket, keys: Keys, seconds: float) -> None:
    """Ask for the key, where one is needed and no header has it: a browser cannot send headers here."""
    if not keys.needed or keys.opens(socket.headers.get("authorization")):
        return
    async with _at_most(seconds, _silent(seconds)):
        message = await _receive(socket)
    if not isinstance(message, dict) or not keys.knows(str(message.get("key", ""))):
        raise RequestError(401, 'a key is needed: send {"key": KEY} as the first message')


async def _receive(socket: WebSocket) -> bytes | dict[str, Any]:
    """The next message: samples, or what a text message says."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    content: bytes | str = message.get("bytes") or message.get("text") or b""
    if len(content) > _MAX_MESSAGE:
        raise RequestError(413, f"a message of {len(content)} bytes, expected at most {_MAX_MESSAGE}")
    if isinstance(content, bytes):
        return content
    try:
        said = json.loads(content)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise RequestError(422, 'a text message is a JSON object: {"type": "end"} or {"key": KEY}')
    return said


async def _answer(socket: WebSocket, wanted: Wanted, model: Model, limits: Serve, decoders: Decoders) -> None:
    rate = _FFMPEG_RATE if wanted.format == "webm" else wanted.rate
    sound = _Sound(rate, max(limits.max_seconds, wanted.window_s))

    async def heard(seconds: float, *, final: bool) -> None:
        content, start_s, end_s = sound.last(seconds)
        recording = await decoders.read(content, seconds)
        answer = await answering.answer(model, recording, language=wanted.language)
        told = {name: getattr(answer, name) for name in Heard.model_fields if name not in ("final", "start_s", "end_s")}
        await socket.send_text(Heard(final=final, start_s=start_s, end_s=end_s, **told).model_dump_json())

    async def listen() -> None:
        async with _at_most(limits.max_stream_s, f"the stream is longer than {limits.max_stream_s:g} s"):
            if wanted.format == "webm":
                await _through_ffmpeg(socket, sound, limits.deadline_s)
            else:
                async for samples in _samples(socket, limits.deadline_s):
                    sound.add(samples)
        sound.end()

    async def roll() -> None:
        answered = 0.0
        while not sound.ended:
            await sound.more.wait()
            sound.more.clear()
            if not sound.ended and sound.seconds - answered >= wanted.hop_s:
                answered = sound.seconds
                await heard(wanted.window_s, final=False)

    await _together(listen(), roll())
    if sound.seconds < MIN_SECONDS:
        raise RequestError(422, f"the stream lasts {sound.seconds:.3f} s, expected at least {MIN_SECONDS} s")
    await heard(limits.max_seconds, final=True)
    await socket.close()


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Until all is done or something fails; nothing is left running then.

    A TaskGroup of Python 3.11 leaves its own task marked as cancelled, when a child fails while it waits for them.
    """
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _samples(socket: WebSocket, patience_s: float) -> AsyncIterator[bytes]:
    """Binary messages until the end is told."""
    while True:
        async with _at_most(patience_s, _silent(patience_s)):
            message = await _receive(socket)
        if isinstance(message, bytes):
            yield message
        elif message.get("type") == "end":
            return


class _Ffmpeg:
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

    async def feed(self, content: bytes) -> None:
        """More of the container."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):  # it has ended: its exit status tells why
            self._process.stdin.write(content)
            await self._process.stdin.drain()

    async def samples(self, sound: _Sound) -> None:
        """All that it makes of it."""
        assert self._process.stdout is not None
        while part := await self._process.stdout.read(1 << 16):
            sound.add(part)

    async def finish(self) -> None:
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


async def _through_ffmpeg(socket: WebSocket, sound: _Sound, patience_s: float) -> None:
    program = await _Ffmpeg.start()
    try:
        made = asyncio.create_task(program.samples(sound))
        async for content in _samples(socket, patience_s):
            await program.feed(content)
        await program.finish()
        await made
    finally:
        await program.kill()
