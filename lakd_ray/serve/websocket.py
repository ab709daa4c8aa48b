"""WebSocket stream of audio, with rolling results while it is recorded.

The client sends binary messages: 16-bit little-endian mono samples (`format=pcm16`, at `rate` Hz), or the output of a
browser's MediaRecorder (`format=webm`, if the server has ffmpeg). It receives a `StreamResult` as JSON every `hop_s`
seconds of audio, for the last `window_s` seconds, or less often if the model is slower or busy. After its text message
{"type": "end"} it receives the final result for all audio, and the stream is closed. If the endpoint requires an API
key, the first message is {"key": KEY}, unless the request has an Authorization header.

An error is sent as {"error": ...} before the stream is closed with code 1008 (invalid request), 1013 (too many streams
or model unavailable: try again) or 1011 (internal error).
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Literal

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import ServeConfig
from lakd_ray.inference.options import LANGUAGE_PATTERN, PredictOptions
from lakd_ray.inference.recordings import MIN_SECONDS
from lakd_ray.serve.auth import ApiKeys, parse_bearer
from lakd_ray.serve.clients import identify_client
from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.messages import ErrorResponse, StreamResult
from lakd_ray.serve.model import ModelHandle
from lakd_ray.serve.parameters import check_names, check_query
from lakd_ray.serve.prediction import PredictionService, Upload
from lakd_ray.serve.prometheus import Metrics
from lakd_ray.serve.rate_limit import RateLimit
from lakd_ray.serve.scheduling import Caller
from lakd_ray.serve.stream_buffer import StreamBuffer
from lakd_ray.serve.webm import WebmDecoder

_MAX_MESSAGE_BYTES = 1 << 20
_MAX_BYTES_PER_S, _BURST_BYTES = 1_000_000, 2_000_000  # 32 times the rate of 16 kHz, and 2.6 times that of 192 kHz
_KEY_DEADLINE_S = 10.0  # from the start of a stream to its key
_MAX_WAITING_FOR_KEY = 8  # few, because each occupies one of the ingress's requests
_CLOSE_POLICY_VIOLATION, _CLOSE_INTERNAL_ERROR, _CLOSE_TRY_AGAIN_LATER = 1008, 1011, 1013  # RFC 6455


class StreamParams(BaseModel):
    """Query parameters of a stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = Field("pcm16", pattern="^(pcm16|webm)$")
    rate: int = Field(16_000, ge=8_000, le=192_000)
    language: str | None = Field(None, pattern=LANGUAGE_PATTERN)
    window_s: float = Field(3.0, ge=0.25, le=60)
    hop_s: float = Field(1.0, ge=0.1, le=60)

    def check_overlap(self, config: ServeConfig) -> None:
        """Reject windows that cost more per second of audio than the timeline of a recording may.

        Raises:
            RequestError: 422.
        """
        overlap, limit = self.window_s / self.hop_s, max(1.0, config.max_request_audio_s / config.max_seconds)
        if overlap > limit:
            raise RequestError(
                422,
                f"window_s={self.window_s:g} with hop_s={self.hop_s:g} costs {overlap:.3g} s of audio for each second "
                f"of the stream, expected at most {limit:.3g}: raise hop_s, or lower window_s",
            )


class _Command(BaseModel):
    """A text message: the end of the audio, or an API key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["end"] | None = None
    key: str | None = None


class StreamKeys:
    """Checks the keys of streams, so that clients without one cannot occupy the streams of others.

    A browser cannot send headers with a WebSocket, so its key is the first message. Streams that have not sent it have
    a short deadline, and when too many wait, the oldest one is closed.
    """

    def __init__(self, keys: ApiKeys):
        self._keys = keys
        self._waiting: deque[asyncio.Timeout] = deque()

    async def authenticate(self, socket: WebSocket, timeout_s: float) -> str | None:
        """Check the key in the header or the first message, and return it; None if the endpoint has no keys.

        Raises:
            RequestError: 401 the key is missing or invalid, 408 it was not sent in time.
        """
        if not self._keys.required:
            return None
        header = socket.headers.get("authorization")
        if self._keys.authorizes(header):
            return parse_bearer(header)
        try:
            async with asyncio.timeout(min(timeout_s, _KEY_DEADLINE_S)) as deadline:
                self._waiting.append(deadline)
                if len(self._waiting) > _MAX_WAITING_FOR_KEY:
                    self._waiting.popleft().reschedule(0)  # ends it at once
                try:
                    message = await _receive_message(socket)
                finally:
                    with suppress(ValueError):  # taken out by `popleft` above
                        self._waiting.remove(deadline)
        except TimeoutError:
            raise RequestError(408, "no API key was sent in time: send it as the first message") from None
        if isinstance(message, bytes) or message.key is None or not self._keys.is_valid(message.key):
            raise RequestError(401, 'the API key is missing or invalid: send {"key": KEY} as the first message')
        return message.key


class StreamSlots:
    """Limits the concurrent streams, of all clients and of each."""

    def __init__(self, config: ServeConfig, metrics: Metrics):
        self._config, self._metrics = config, metrics
        self._open: Counter[str] = Counter()

    @contextmanager
    def occupy(self, client: str) -> Iterator[None]:
        """Occupy one slot until the block ends.

        Raises:
            RequestError: 429 the client has too many streams, 503 all slots are occupied.
        """
        if self._open.total() >= self._config.max_streams:
            raise RequestError(
                503, f"{self._config.max_streams} streams are open, the limit of the endpoint: try again later"
            )
        if self._open[client] >= self._config.max_client_streams:
            raise RequestError(
                429,
                f"{self._open[client]} streams of this client are open, its limit: close one, or raise "
                "serve.max_client_streams of the endpoint",
            )
        self._open[client] += 1
        try:
            with self._metrics.streams.track_inprogress():
                yield
        finally:
            self._open[client] -= 1
            self._open += Counter()  # forgets the clients without streams


async def handle_stream(
    socket: WebSocket,
    model: ModelHandle,
    config: ServeConfig,
    keys: StreamKeys,
    slots: StreamSlots,
    predictions: PredictionService,
) -> None:
    """Handle a stream from its acceptance to its end."""
    await socket.accept()
    try:
        params = _parse_query(socket)
        params.check_overlap(config)
        client = identify_client(socket, await keys.authenticate(socket, config.deadline_s))
        with slots.occupy(client):
            await _run_stream(socket, client, params, model, config, predictions)
    except RequestError as error:
        await _close_with_error(
            socket, _CLOSE_TRY_AGAIN_LATER if error.status in (429, 503) else _CLOSE_POLICY_VIOLATION, error.message
        )
    except WebSocketDisconnect:
        pass
    except Exception as error:  # reported to the client as in HTTP, then raised for the log of the server
        await _close_with_error(
            socket,
            _CLOSE_INTERNAL_ERROR,
            f"internal error ({type(error).__name__}); the log of the server has the details",
        )
        raise


def _parse_query(socket: WebSocket) -> StreamParams:
    check_query(socket.query_params, StreamParams.model_fields)
    try:
        return StreamParams.model_validate(dict(socket.query_params))
    except ValidationError as error:
        details = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise RequestError(422, "; ".join(details)) from None


async def _close_with_error(socket: WebSocket, code: int, reason: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):  # the client may have closed it
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
    return f"no message for {seconds:g} s: send audio continuously, or end the stream"


async def _receive_message(socket: WebSocket) -> bytes | _Command:
    """Return the next message: the samples of a binary message, or the command of a text message."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    text: str | None = message.get("text")
    content: bytes | str = message.get("bytes") or b"" if text is None else text
    if len(content) > _MAX_MESSAGE_BYTES:
        raise RequestError(413, f"the message has {len(content)} bytes, expected at most {_MAX_MESSAGE_BYTES}")
    return content if isinstance(content, bytes) else _parse_command(content)


def _parse_command(text: str) -> _Command:
    expected = 'expected {"type": "end"} or {"key": KEY}'
    try:
        values = from_json(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or len(values) != 1 or None in values.values():
        raise RequestError(422, f"the text message is not a JSON object with one key, {expected}")
    check_names(list(values), _Command.model_fields, "key of a message", f"; {expected}")
    try:
        return _Command.model_validate(values)
    except ValidationError as error:
        (item,) = error.errors()
        raise RequestError(422, f"`{item['loc'][0]}` in the message is invalid ({item['msg']}), {expected}") from None


async def _run_stream(
    socket: WebSocket,
    client: str,
    params: StreamParams,
    model: ModelHandle,
    config: ServeConfig,
    predictions: PredictionService,
) -> None:
    rate = SAMPLE_RATE if params.format == "webm" else params.rate
    buffer = StreamBuffer(rate, max(config.max_seconds, params.window_s))

    async def send_result(seconds: float, *, final: bool) -> None:
        content, start_s, end_s = buffer.tail_as_wav(seconds)
        options = PredictOptions(language=params.language)
        result = await predictions.predict(Caller(client), Upload(content, model), options, max_seconds=seconds)
        fields = {name: getattr(result, name) for name in StreamResult.model_fields if hasattr(result, name)}
        await socket.send_text(StreamResult(final=final, start_s=start_s, end_s=end_s, **fields).model_dump_json())

    async def receive_audio() -> None:
        async with _timeout(
            config.max_stream_s, f"the stream is longer than the limit of {config.max_stream_s:g} s: open a new one"
        ):
            if params.format == "webm":
                await _decode_webm(socket, buffer, config.deadline_s, config.max_stream_s)
            else:
                async for samples in _receive_samples(socket, config.deadline_s):
                    buffer.append(samples)
        buffer.close()

    async def emit_rolling_results() -> None:
        last_s = 0.0
        while not buffer.is_closed:
            await buffer.updated.wait()
            buffer.updated.clear()
            if not buffer.is_closed and buffer.total_seconds - last_s >= params.hop_s:
                last_s = buffer.total_seconds
                try:
                    await send_result(params.window_s, final=False)
                except RequestError as error:
                    if error.retry_after_s is None:
                        raise
                    # the endpoint is busy: this result is left out, and the next one may have its turn

    try:
        await _run_concurrently(receive_audio(), emit_rolling_results())
        if buffer.total_seconds < MIN_SECONDS:
            raise RequestError(422, f"the stream lasts {buffer.total_seconds:.3f} s, expected at least {MIN_SECONDS} s")
        await send_result(config.max_seconds, final=True)
        await socket.close()
    finally:
        buffer.clear()  # an error refers to it in a cycle, which is not collected for minutes


async def _run_concurrently(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines until all have finished or one fails, and cancel the others.

    A TaskGroup of Python 3.11 would leave the calling task marked as cancelled if a child fails while it waits.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _receive_samples(socket: WebSocket, idle_timeout_s: float) -> AsyncIterator[bytes]:
    """Yield binary messages until the message of type `end`, at a limited rate.

    A client that sends faster is slowed down, because forwarding its messages delays the requests of others.
    """
    rate = RateLimit(_MAX_BYTES_PER_S, _BURST_BYTES)
    while True:
        async with _timeout(idle_timeout_s, _idle_message(idle_timeout_s)):
            message = await _receive_message(socket)
        if isinstance(message, bytes):
            rate.add(len(message))
            await asyncio.sleep(rate.wait_s())
            yield message
        elif message.type == "end":
            return


async def _decode_webm(socket: WebSocket, buffer: StreamBuffer, idle_timeout_s: float, max_stream_s: float) -> None:
    ffmpeg = await WebmDecoder.start(max_stream_s)
    try:
        reader = asyncio.create_task(ffmpeg.read_samples(buffer.set_channels, buffer.append))
        async for content in _receive_samples(socket, idle_timeout_s):
            await ffmpeg.write(content)
        await ffmpeg.close()
        await reader
    finally:
        await ffmpeg.kill()
