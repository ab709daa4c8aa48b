"""The WebSocket stream with real messages and real decoding, in front of a fake model."""

import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect
from support.fake_model import FakeModel
from support.local_endpoint import running_api
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import ClientConnection, connect

from lakd_ray.audio import Wave
from lakd_ray.config import ServeConfig
from lakd_ray.inference.results import ModelPredictions
from lakd_ray.serve import websocket
from lakd_ray.serve.api import ModelRouter, create_app
from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.messages import StreamResult
from lakd_ray.serve.rate_limit import RateLimit
from lakd_ray.serve.stream_buffer import StreamBuffer

KEY = "a key that is hard to guess"
END = '{"type": "end"}'
OpenStream = Callable[..., Any]


@pytest.fixture
def stream(decoders) -> OpenStream:
    """Opens a stream to the API of a fake model."""

    @contextmanager
    def opened(query: str = "", *, model: FakeModel | None = None, **limits: Any) -> Iterator[WebSocketTestSession]:
        app = create_app(
            ModelRouter(model or FakeModel()), ServeConfig(max_seconds=3.0).model_copy(update=limits), decoders
        )
        with TestClient(app, base_url="http://127.0.0.1").websocket_connect(f"/v1/stream?{query}") as session:
            yield session

    return opened


def samples(seconds: float, rate: int = 16_000) -> bytes:
    noise = 3000 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    return noise.astype("<i2").tobytes()


def remaining_results(session: WebSocketTestSession) -> list[StreamResult]:
    """Return all results up to the final one."""
    results = [StreamResult.model_validate_json(session.receive_text())]
    while not results[-1].final:
        results.append(StreamResult.model_validate_json(session.receive_text()))
    return results


def assert_closed(session: WebSocketTestSession, code: int, *texts: str) -> None:
    error = json.loads(session.receive_text())["error"]
    assert all(text in error for text in texts), error
    with pytest.raises(WebSocketDisconnect) as closed:
        session.receive_text()
    assert closed.value.code == code


def test_rolling_and_final_results(stream):
    model = FakeModel()
    with stream("window_s=1&hop_s=0.5&language=de", model=model) as session:
        for _ in range(4):
            session.send_bytes(samples(0.5))
            result = StreamResult.model_validate_json(session.receive_text())
        assert (result.final, result.start_s, result.end_s) == (False, 1.0, 2.0)
        assert (result.emotion, result.language, result.model) == ("neutral", "de", "student")
        session.send_text(END)
        (final,) = remaining_results(session)
        assert (final.final, final.start_s, final.end_s) == (True, 0.0, 2.0)
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_text()
        assert closed.value.code == 1000
    assert [len(wave_T) for wave_T in model.waves] == [8_000, 16_000, 16_000, 16_000, 32_000]


def test_message_may_end_in_the_middle_of_a_sample(stream):
    audio = samples(1.0)
    model = FakeModel()
    with stream("hop_s=60", model=model) as session:
        for start in range(0, len(audio), 4_001):
            session.send_bytes(audio[start : start + 4_001])
        session.send_text(END)
        remaining_results(session)
    assert model.waves[-1] == pytest.approx(np.frombuffer(audio, "<i2") / 32768)


def test_other_sample_rates_are_resampled(stream):
    model = FakeModel()
    with stream("rate=48000&hop_s=60", model=model) as session:
        session.send_bytes(samples(1.0, 48_000))
        session.send_text(END)
        assert remaining_results(session)[-1].end_s == pytest.approx(1.0)
    assert len(model.waves[-1]) == 16_000


def test_final_result_of_a_long_stream_covers_its_last_seconds(stream):
    model = FakeModel()
    with stream("hop_s=60", model=model) as session:
        for _ in range(20):
            session.send_bytes(samples(0.5))
        session.send_text(END)
        final = remaining_results(session)[-1]
    assert (final.start_s, final.end_s) == (7.0, 10.0)
    assert len(model.waves[-1]) == 48_000


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sizes", [(1,), (4_001,), (1_000_000,), (1, 70_000, 2, 30_001)])
def test_buffer_keeps_the_last_samples(channels, sizes):
    received = np.random.default_rng(0).bytes(300_007)
    buffer = StreamBuffer(rate=1000, max_seconds=20.0)
    buffer.set_channels(channels)
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(received):
            break
        buffer.append(received[start : start + size])
        start += size
    frames = len(received) // (2 * channels)
    for seconds in (0.25, 5.0, 20.0):
        content, start_s, end_s = buffer.tail_as_wav(seconds)
        with wave.open(io.BytesIO(content)) as file:
            tail = file.readframes(file.getnframes())
        count = round(1000 * seconds)
        assert tail == received[2 * channels * (frames - count) : 2 * channels * frames]
        assert (start_s, end_s) == pytest.approx(((frames - count) / 1000, frames / 1000))
    assert len(buffer._parts) < 10  # messages of a byte do not cost an object each
    assert sum(map(len, buffer._parts)) <= 42_000 * channels + 65_536 + max(sizes)


def test_a_pause_earns_one_burst_and_not_more(monkeypatch):
    now = 0.0
    monkeypatch.setattr("lakd_ray.serve.rate_limit.time.monotonic", lambda: now)
    limit = RateLimit(rate=10, burst=20)
    limit.add(20)
    assert limit.wait_s() == 0
    limit.add(10)
    assert limit.wait_s() == 1
    now = 600.0
    limit.add(50)
    assert limit.wait_s() == 3


def test_a_stream_is_slowed_down_to_its_rate(stream, monkeypatch):
    monkeypatch.setattr(websocket, "_BURST_BYTES", 32_000)
    monkeypatch.setattr(websocket, "_MAX_BYTES_PER_S", 64_000)
    elapsed = []
    for seconds in (1.0, 2.0):
        start = time.monotonic()
        with stream("hop_s=60") as session:
            for _ in range(10):
                session.send_bytes(samples(seconds / 10))
            session.send_text(END)
            assert remaining_results(session)[-1].end_s == pytest.approx(seconds)
        elapsed.append(time.monotonic() - start)
    assert elapsed[0] < 0.45
    assert elapsed[1] >= 0.5


@pytest.mark.usefixtures("ffmpeg")
def test_webm_of_a_browser_is_decoded(stream, recording):
    command = ["ffmpeg", "-loglevel", "error", "-i", "pipe:0", "-c:a", "libopus", "-f", "webm", "pipe:1"]
    webm = subprocess.run(command, input=recording(2.0), capture_output=True, check=True).stdout
    with stream("format=webm&hop_s=60") as session:
        for part in io.BytesIO(webm), io.BytesIO(b""):
            while chunk := part.read(1_000):
                session.send_bytes(chunk)
        session.send_text(END)
        assert remaining_results(session)[-1].end_s == pytest.approx(2.0, abs=0.1)


DECODE_IN_UVLOOP = """
import asyncio, ctypes, os, resource
import uvloop
from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.webm import WebmDecoder

@ctypes.CFUNCTYPE(None)
def open_files():  # in the child, as the handlers of gRPC do
    for _ in range(40):
        try:
            os.open("/dev/null", os.O_RDONLY)
        except OSError:
            os.abort()

async def main():
    ctypes.CDLL(None).__register_atfork(None, None, open_files, None)
    decoder = await WebmDecoder.start(60.0)
    print(resource.prlimit(decoder._process.pid, resource.RLIMIT_CPU))
    for _ in range(3):
        await decoder.write(b"junk" * 1000)
        await asyncio.sleep(0.3)
    try:
        await decoder.close()
    except RequestError as error:
        print(error.message)
    await decoder.kill()

uvloop.run(main())
"""


@pytest.mark.usefixtures("ffmpeg")
def test_ffmpeg_starts_in_the_event_loop_of_ray_serve_and_its_end_is_reported():
    done = subprocess.run([sys.executable, "-c", DECODE_IN_UVLOOP], check=True, capture_output=True, text=True)
    assert "(61, 61)" in done.stdout
    assert "the error of ffmpeg is 'Error opening input files: Invalid data found" in done.stdout


@pytest.mark.usefixtures("ffmpeg")
@pytest.mark.parametrize(("channels", "warnings"), [((1,), []), ((1, 1), []), ((1, -1), ["channels"])])
def test_channels_of_webm_are_mixed_as_those_of_files(stream, channels, warnings):
    wave_T = 0.3 * np.sin(2 * np.pi * 220 * np.arange(96_000) / 48_000)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.outer(wave_T, channels), 48_000, format="WAV")
    command = ["ffmpeg", "-loglevel", "error", "-i", "pipe:0", "-c:a", "libopus", "-f", "webm", "pipe:1"]
    webm = subprocess.run(command, input=buffer.getvalue(), capture_output=True, check=True).stdout
    model = FakeModel()
    with stream("format=webm&hop_s=60", model=model) as session:
        session.send_bytes(webm)
        session.send_text(END)
        final = remaining_results(session)[-1]
    assert final.end_s == pytest.approx(2.0, abs=0.1)
    assert [warning.code for warning in final.warnings] == warnings
    assert np.abs(model.waves[-1][8_000:24_000]).max() == pytest.approx(0.3, rel=0.1)


@pytest.mark.usefixtures("ffmpeg")
def test_stream_that_is_not_webm_is_rejected(stream):
    with stream("format=webm") as session:
        session.send_bytes(samples(1.0))
        session.send_text(END)
        assert_closed(session, 1008, "WebM")


def test_ffmpeg_of_a_stream_is_confined(stream, tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text(
        "#!/bin/sh\ncat > /dev/null\nyes | head -c 200000 >&2\necho $(ulimit -v) $(ulimit -t) >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with stream("format=webm", max_stream_s=30.0) as session:
        session.send_bytes(samples(1.0))
        session.send_text(END)
        assert_closed(session, 1008, "2097152 31")  # its messages fill the pipe, which is read while it runs


@pytest.mark.parametrize(
    "query",
    [
        "format=mp3",
        "rate=1",
        "rate=x",
        "language=EN",
        "hop_s=0",
        "window_s=1e9",
        "window_s=60&hop_s=0.1",
        "a=1",
        "rate=1&rate=2",
    ],
)
def test_invalid_queries_are_rejected(stream, query):
    with stream(query) as session:
        assert_closed(session, 1008, query.partition("=")[0])


@pytest.mark.parametrize("keys_required", [False, True])
@pytest.mark.parametrize("text", [
    "", "{", "not JSON", "[1]", '"end"', "null", "{}", "[" * 200_000, '{"a":' * 100_000, '{"key": ' + "9" * 5000 + "}",
    '{"key": NaN}', r'{"key": "\ud800"}', '{"type": "end", "key": "a"}', '{"key": null}', "\0", "\ufeff{}",
])  # fmt: skip
def test_invalid_text_messages_are_rejected(stream, monkeypatch, text, keys_required):
    if keys_required:
        monkeypatch.setenv("LAKD_API_KEYS", KEY)
    with stream() as session:
        session.send_text(text)
        assert_closed(session, 1008)


@pytest.mark.parametrize(("text", "texts"), [
    ('{"type": "stop"}', ["`type`", "end"]),
    ('{"type": 1}', ["`type`"]),
    ('{"key": ["a"]}', ["`key`", "string"]),
    ('{"keys": "a"}', ["`keys`", "did you mean `key`"]),
    ('{"language": "fi"}', ["`language`", "expected"]),
])  # fmt: skip
def test_messages_with_unknown_keys_or_values_are_rejected(stream, text, texts):
    with stream() as session:
        session.send_text(text)
        assert_closed(session, 1008, *texts)


def test_key_for_an_endpoint_without_keys_is_accepted(stream):
    with stream() as session:
        session.send_text(json.dumps({"key": KEY}))
        session.send_bytes(samples(0.5))
        session.send_text(END)
        assert remaining_results(session)[-1].final


def test_clients_without_a_key_do_not_occupy_streams(decoders, monkeypatch):
    monkeypatch.setenv("LAKD_API_KEYS", KEY)
    with running_api(FakeModel(), decoders, max_streams=1) as url, ExitStack() as stack:
        address = url.replace("http", "ws") + "/v1/stream"
        idle = [stack.enter_context(connect(address)) for _ in range(12)]
        for headers, key in (({"Authorization": f"Bearer {KEY}"}, None), ({}, KEY)):
            with connect(address, additional_headers=headers) as session:
                if key:
                    session.send(json.dumps({"key": key}))
                session.send(samples(0.5))
                session.send(END)
                assert StreamResult.model_validate_json(session.recv(timeout=60)).final
        assert "no API key" in json.loads(idle[0].recv(timeout=60))["error"]  # the oldest one


def test_stream_without_its_key_is_closed_after_a_short_time(stream, monkeypatch):
    monkeypatch.setenv("LAKD_API_KEYS", KEY)
    monkeypatch.setattr(websocket, "_KEY_DEADLINE_S", 0.1)
    with stream() as session:
        assert_closed(session, 1008, "no API key")


def test_short_streams_and_large_messages_are_rejected(stream):
    with stream() as session:
        session.send_text(END)
        assert_closed(session, 1008, "0.000 s")
    with stream() as session:
        session.send_bytes(samples(0.05))
        session.send_text(END)
        assert_closed(session, 1008, "0.050 s")
    with stream() as session:
        session.send_bytes(bytes((1 << 20) + 1))
        assert_closed(session, 1008, "bytes")


def test_idle_and_endless_streams_are_closed(stream):
    with stream(deadline_s=0.2) as session:
        assert_closed(session, 1008, "0.2 s")
    with stream(max_stream_s=0.2) as session:
        assert_closed(session, 1008, "0.2 s")


def test_number_of_streams_is_limited(stream):
    with stream(max_streams=0) as session:
        assert_closed(session, 1013, "0 streams")


def test_one_client_does_not_occupy_all_streams(decoders, monkeypatch):
    monkeypatch.setenv("LAKD_API_KEYS", f"{KEY},{KEY}-of-others")
    with running_api(FakeModel(), decoders, max_streams=3, max_client_streams=2) as url, ExitStack() as stack:

        def open_stream(key: str) -> ClientConnection:
            return stack.enter_context(
                connect(url.replace("http", "ws") + "/v1/stream", additional_headers={"Authorization": f"Bearer {key}"})
            )

        def finish(session: ClientConnection) -> dict[str, Any]:
            session.send(samples(0.5))
            session.send(END)
            return json.loads(session.recv(timeout=60))

        first, _ = open_stream(KEY), open_stream(KEY)
        assert "serve.max_client_streams" in json.loads(open_stream(KEY).recv(timeout=60))["error"]
        other = open_stream(f"{KEY}-of-others")
        assert "3 streams" in json.loads(open_stream(f"{KEY}-of-others").recv(timeout=60))["error"]
        assert finish(other)["final"]
        assert finish(first)["final"]
        with pytest.raises(ConnectionClosedOK):
            first.recv(timeout=60)
        assert finish(open_stream(KEY))["final"]


def test_errors_of_the_model_are_reported(stream):
    with stream(model=FakeModel(RequestError(503, "unavailable"))) as session:
        session.send_bytes(samples(0.5))
        session.send_text(END)
        assert_closed(session, 1013, "unavailable")
    with pytest.raises(RuntimeError), stream(model=FakeModel(RuntimeError("secret"))) as session:
        session.send_bytes(samples(0.5))
        session.send_text(END)
        assert "secret" not in session.receive_text()


class BusyModel(FakeModel):
    """A model whose first prediction has no turn."""

    def __init__(self) -> None:
        super().__init__()
        self.was_busy = threading.Event()

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        if not self.was_busy.is_set():
            self.was_busy.set()
            raise RequestError(503, "busy", retry_after_s=1)
        return await super().predict(waves, language)


def test_rolling_result_without_a_turn_is_left_out(stream):
    model = BusyModel()
    with stream("window_s=1&hop_s=0.5", model=model) as session:
        session.send_bytes(samples(0.5))
        assert model.was_busy.wait(60)
        session.send_bytes(samples(0.5))
        assert StreamResult.model_validate_json(session.receive_text()).end_s == 1.0
        session.send_text(END)
        assert remaining_results(session)[-1].final


def test_stream_requires_an_api_key(stream, tmp_path):
    file = tmp_path / "keys"
    file.write_text(KEY)
    for message in (json.dumps({"key": KEY + "x"}), END):
        with stream(api_keys_file=str(file)) as session:
            session.send_text(message)
            assert_closed(session, 1008, "key")
    with stream(api_keys_file=str(file)) as session:
        session.send_bytes(samples(0.5))
        assert_closed(session, 1008, "key")
    with stream(api_keys_file=str(file)) as session:
        session.send_text(json.dumps({"key": KEY}))
        session.send_bytes(samples(0.5))
        session.send_text(END)
        assert remaining_results(session)[-1].final


def test_a_stream_that_fails_leaves_no_audio_in_memory(stream, monkeypatch):
    buffers = []

    class Buffer(StreamBuffer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            buffers.append(self)

    monkeypatch.setattr(websocket, "StreamBuffer", Buffer)
    with stream("hop_s=60") as session:
        session.send_bytes(samples(2.0))
        session.send_text("no JSON")
        assert_closed(session, 1008)
    with stream("hop_s=60") as session:
        session.send_bytes(samples(2.0))
    assert [(buffer.total_seconds, len(buffer._parts)) for buffer in buffers] == [(2.0, 0)] * 2


def test_client_may_disconnect_during_a_stream(stream):
    for _ in range(3):
        with stream() as session:
            session.send_bytes(samples(0.5))
            session.close()
