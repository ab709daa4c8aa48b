"""Sound that is answered while it is recorded: real WebSocket messages, real decoding, a stand-in for the model."""

import io
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect
from support.standin import StandIn

from lakd_ray.config import ServeConfig
from lakd_ray.serve.api import ModelRouter, create_app
from lakd_ray.serve.messages import StreamResult

KEY = "a key that nobody guesses"
END = '{"type": "end"}'
Open = Callable[..., Any]


@pytest.fixture
def stream(decoders) -> Open:
    """Opens a stream."""

    @contextmanager
    def opened(query: str = "", *, model: StandIn | None = None, **limits: Any) -> Iterator[WebSocketTestSession]:
        app = create_app(
            ModelRouter(model or StandIn()), ServeConfig(max_seconds=3.0).model_copy(update=limits), decoders
        )
        with TestClient(app).websocket_connect(f"/v1/stream?{query}") as session:
            yield session

    return opened


def samples(seconds: float, rate: int = 16_000) -> bytes:
    noise = 3000 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    return noise.astype("<i2").tobytes()


def rest(session: WebSocketTestSession) -> list[StreamResult]:
    """All answers up to the last one."""
    heard = [StreamResult.model_validate_json(session.receive_text())]
    while not heard[-1].final:
        heard.append(StreamResult.model_validate_json(session.receive_text()))
    return heard


def refused(session: WebSocketTestSession, code: int, *words: str) -> None:
    error = json.loads(session.receive_text())["error"]
    assert all(word in error for word in words), error
    with pytest.raises(WebSocketDisconnect) as closed:
        session.receive_text()
    assert closed.value.code == code


def test_rolling_and_final_answers(stream):
    model = StandIn()
    with stream("window_s=1&hop_s=0.5&language=de", model=model) as session:
        for _ in range(4):
            session.send_bytes(samples(0.5))
            heard = StreamResult.model_validate_json(session.receive_text())
        assert (heard.final, heard.start_s, heard.end_s) == (False, 1.0, 2.0)
        assert (heard.emotion, heard.language, heard.model) == ("neutral", "de", "student")
        session.send_text(END)
        (final,) = rest(session)
        assert (final.final, final.start_s, final.end_s) == (True, 0.0, 2.0)
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_text()
        assert closed.value.code == 1000
    assert [len(wave_T) for wave_T in model.received] == [8_000, 16_000, 16_000, 16_000, 32_000]


def test_messages_may_end_within_a_sample(stream):
    whole = samples(1.0)
    model = StandIn()
    with stream("hop_s=60", model=model) as session:
        for start in range(0, len(whole), 4_001):
            session.send_bytes(whole[start : start + 4_001])
        session.send_text(END)
        rest(session)
    assert model.received[-1] == pytest.approx(np.frombuffer(whole, "<i2") / 32768)


def test_other_rates(stream):
    model = StandIn()
    with stream("rate=48000&hop_s=60", model=model) as session:
        session.send_bytes(samples(1.0, 48_000))
        session.send_text(END)
        assert rest(session)[-1].end_s == pytest.approx(1.0)
    assert len(model.received[-1]) == 16_000


def test_only_the_last_of_a_long_stream_is_kept(stream):
    model = StandIn()
    with stream("hop_s=60", model=model) as session:
        for _ in range(20):
            session.send_bytes(samples(0.5))
        session.send_text(END)
        final = rest(session)[-1]
    assert (final.start_s, final.end_s) == (7.0, 10.0)
    assert len(model.received[-1]) == 48_000


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_what_a_browser_records(stream, recording):
    command = ["ffmpeg", "-loglevel", "error", "-i", "pipe:0", "-c:a", "libopus", "-f", "webm", "pipe:1"]
    webm = subprocess.run(command, input=recording(2.0), capture_output=True, check=True).stdout
    with stream("format=webm&hop_s=60") as session:
        for part in io.BytesIO(webm), io.BytesIO(b""):
            while chunk := part.read(1_000):
                session.send_bytes(chunk)
        session.send_text(END)
        assert rest(session)[-1].end_s == pytest.approx(2.0, abs=0.1)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_what_is_no_webm(stream):
    with stream("format=webm") as session:
        session.send_bytes(samples(1.0))
        session.send_text(END)
        refused(session, 1008, "WebM")


@pytest.mark.parametrize("query", ["format=mp3", "rate=1", "rate=x", "language=EN", "hop_s=0", "window_s=1e9", "odd=1"])
def test_queries_that_cannot_be(stream, query):
    with stream(query) as session:
        refused(session, 1008, query.partition("=")[0])


@pytest.mark.parametrize("text", ["", "no JSON", "[1]", '"end"', "null"])
def test_texts_that_say_nothing(stream, text):
    with stream() as session:
        session.send_text(text or "{")
        refused(session, 1008, "JSON")


def test_empty_short_and_large(stream):
    with stream() as session:
        session.send_text(END)
        refused(session, 1008, "0.000 s")
    with stream() as session:
        session.send_bytes(samples(0.05))
        session.send_text(END)
        refused(session, 1008, "0.050 s")
    with stream() as session:
        session.send_bytes(bytes((1 << 20) + 1))
        refused(session, 1008, "bytes")


def test_silence_on_the_line_and_endless_streams(stream):
    with stream(deadline_s=0.2) as session:
        refused(session, 1008, "0.2 s")
    with stream(max_stream_s=0.2) as session:
        refused(session, 1008, "0.2 s")


def test_no_more_streams_than_allowed(stream):
    with stream(max_streams=0) as session:
        refused(session, 1013, "0 streams")


def test_faults_of_the_model(stream):
    from lakd_ray.serve.upload import RequestError

    with stream(model=StandIn(RequestError(503, "away"))) as session:
        session.send_bytes(samples(0.5))
        session.send_text(END)
        refused(session, 1013, "away")
    with pytest.raises(RuntimeError), stream(model=StandIn(RuntimeError("secret"))) as session:
        session.send_bytes(samples(0.5))
        session.send_text(END)
        assert "secret" not in session.receive_text()


def test_keys(stream, tmp_path):
    file = tmp_path / "keys"
    file.write_text(KEY)
    for first in (json.dumps({"key": KEY + "x"}), END):
        with stream(api_keys_file=str(file)) as session:
            session.send_text(first)
            refused(session, 1008, "key")
    with stream(api_keys_file=str(file)) as session:
        session.send_bytes(samples(0.5))
        refused(session, 1008, "key")
    with stream(api_keys_file=str(file)) as session:
        session.send_text(json.dumps({"key": KEY}))
        session.send_bytes(samples(0.5))
        session.send_text(END)
        assert rest(session)[-1].final


def test_clients_that_go_away(stream):
    for _ in range(3):
        with stream() as session:
            session.send_bytes(samples(0.5))
            session.close()
