"""The HTTP API in front of a stand-in model: what it answers, and that bad input is never a 500."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import numpy as np
import pytest

from lakd_ray.audio import Wave
from lakd_ray.config import Serve
from lakd_ray.serve.answers import Answer, ModelCard, Prediction
from lakd_ray.serve.api import create_app
from lakd_ray.serve.upload import MEGABYTE, RequestError

CARD = ModelCard(model="student", emotions=("anger", "happiness", "neutral", "sadness"), languages=("en", "de"))
LIMITS = Serve(max_upload_mb=0.5, max_seconds=3.0)
AUDIO = {"Content-Type": "audio/wav"}


class StandIn:
    """A model that remembers what it heard."""

    def __init__(self, fault: Exception | None = None, **listens: Any):
        self.heard: list[Wave] = []
        self.fault, self.listens = fault, listens

    async def card(self) -> ModelCard:
        return CARD

    async def predict(self, wave_T: Wave, language: str | None) -> Prediction:
        if self.fault:
            raise self.fault
        self.heard.append(wave_T)
        return Prediction(probabilities=(0.1, 0.2, 0.6, 0.1), **self.listens)


def ask(model: StandIn, method: str = "POST", path: str = "/v1/emotion", **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(model, LIMITS), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


def test_the_language_that_a_student_hears_is_told_unless_one_was_given(recording):
    model = StandIn(language="de", language_probability=0.75)
    heard = ask(model, content=recording(1.0), headers=AUDIO).json()
    assert (heard["language"], heard["language_probability"]) == ("de", 0.75)
    given = ask(model, path="/v1/emotion?language=en", content=recording(1.0), headers=AUDIO).json()
    assert (given["language"], given["language_probability"]) == ("en", None)


def refused(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    for word in words:
        assert word in response.json()["error"]


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("kind", ["audio/x-something", "application/octet-stream", "Audio/WAV; codecs=1"])
def test_raw_body(recording, format, kind):
    model = StandIn()
    response = ask(model, content=recording(1.0, format=format), headers={"Content-Type": kind})
    assert response.status_code == 200, response.text
    answer = Answer.model_validate(response.json())
    assert answer.emotion == "neutral"
    assert answer.probabilities == {"anger": 0.1, "happiness": 0.2, "neutral": 0.6, "sadness": 0.1}
    assert answer.language is None
    assert answer.model == "student"
    assert answer.duration_s == pytest.approx(1.0, abs=0.1)  # lossy formats pad
    assert model.heard[0].dtype == np.float32
    assert model.heard[0].ndim == 1


def test_stereo_at_another_rate(recording):
    model = StandIn()
    response = ask(model, content=recording(0.5, rate=8_000, channels=2), headers=AUDIO)
    assert response.json()["duration_s"] == pytest.approx(0.5, abs=0.01)


def test_multipart(recording):
    model = StandIn()
    response = ask(model, files={"file": ("clip.wav", recording(2.0), "audio/wav")}, data={"note": "kept out"})
    assert response.status_code == 200, response.text
    assert len(model.heard[0]) == 32_000


def test_language_is_echoed(recording):
    response = ask(StandIn(), content=recording(), headers=AUDIO, params={"language": "de"})
    assert response.json()["language"] == "de"


@pytest.mark.parametrize("language", ["fr", "", "EN", "x" * 10_000])
def test_unknown_language_is_refused_with_the_known_ones(recording, language):
    model = StandIn()
    response = ask(model, content=recording(), headers=AUDIO, params={"language": language})
    refused(response, 422, "unknown language", "en, de")
    assert not model.heard


def upload(chunk: bytes, drawn: list[int]) -> AsyncIterator[bytes]:
    """An endless upload without a Content-Length."""

    async def chunks() -> AsyncIterator[bytes]:
        while len(drawn) < 1000:
            drawn.append(len(chunk))
            yield chunk

    return chunks()


def test_declared_length_is_refused_before_reading():
    drawn: list[int] = []
    headers = {**AUDIO, "Content-Length": "600000"}
    refused(ask(StandIn(), content=upload(b"\0" * 100_000, drawn), headers=headers), 413, "0.5 MB")
    assert not drawn


@pytest.mark.parametrize("kind", ["audio/wav", "multipart/form-data; boundary=edge"])
def test_undeclared_length_is_counted(kind):
    drawn: list[int] = []
    first = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    async def chunks() -> AsyncIterator[bytes]:
        yield first
        async for chunk in upload(b"\0" * 100_000, drawn):
            yield chunk

    refused(ask(StandIn(), content=chunks(), headers={"Content-Type": kind}), 413, "0.5 MB")
    assert sum(drawn) <= LIMITS.max_upload_mb * MEGABYTE + 200_000


def test_wrong_declared_length_is_harmless(recording):
    async def chunks() -> AsyncIterator[bytes]:
        yield recording()

    for declared in ("9" * 500, "-1", "many"):
        response = ask(StandIn(), content=chunks(), headers={**AUDIO, "Content-Length": declared})
        assert response.status_code in (200, 413)


def test_file_over_the_limit_within_the_forms_allowance():
    refused(ask(StandIn(), files={"file": ("a.wav", b"\0" * 500_001)}), 413)


def test_too_long(recording):
    refused(ask(StandIn(), content=recording(60.0, rate=8_000, format="OGG"), headers=AUDIO), 413, "3 s")


def test_exactly_long_enough(recording):
    for rate in (8_000, 11_025, 16_000, 44_100):
        response = ask(StandIn(), content=recording(3.0, rate=rate), headers=AUDIO)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/json", "application/x-www-form-urlencoded", "é"])
def test_other_content_types(recording, kind):
    headers = {} if kind is None else {"Content-Type": kind.encode("latin-1")}
    refused(ask(StandIn(), content=recording(), headers=headers), 415, "audio/*")


def broken_recordings(recording) -> Iterable[bytes]:
    whole = recording()
    generator = np.random.default_rng(1)
    yield from (b"", b"\0", b"RIFF", b"not audio at all", whole[:30], whole[:44], generator.bytes(5_000))
    yield recording(0.0)
    yield recording(0.05)
    yield recording(0.5, format="FLAC")[:60]
    yield recording(0.5, format="MP3")[:20]


def test_undecodable(recording):
    for content in broken_recordings(recording):
        refused(ask(StandIn(), content=content, headers=AUDIO), 422)


@pytest.mark.parametrize("rate", [15_999, 47_999, 192_001, 2_000_000_011])
def test_odd_sample_rates_cost_nothing(recording, rate):
    refused(ask(StandIn(), content=recording(1000 / rate, rate=rate), headers=AUDIO), 422, f"{rate} Hz")


def test_damaged_recordings_never_break_the_endpoint(recording):
    generator = np.random.default_rng(2)
    for format in ("WAV", "FLAC", "OGG", "MP3"):
        for _ in range(10):
            content = bytearray(recording(0.3, format=format))
            for position in generator.integers(0, min(len(content), 200), 4):
                content[position] = generator.integers(256)
            response = ask(StandIn(), content=bytes(content), headers=AUDIO)
            assert response.status_code in (200, 413, 422), (format, response.text)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=", b"--\r\n"),
        ("multipart/form-data; boundary=edge", b""),
        ("multipart/form-data; boundary=edge", b"--other\r\n\r\n"),
        ("multipart/form-data; boundary=edge", b"--edge\r\n\r\nno disposition\r\n--edge--\r\n"),
        ("multipart/form-data; boundary=edge; charset=\xff", b"--edge--\r\n"),
        (
            "multipart/form-data; boundary=edge",
            b'--edge\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n--edge--\r\n',
        ),
    ],
)
def test_bad_forms(kind, body):
    refused(ask(StandIn(), content=body, headers={"Content-Type": kind.encode("latin-1")}), 422)


def test_form_with_the_file_elsewhere(recording):
    refused(ask(StandIn(), files={"audio": ("a.wav", recording())}), 422, "`file`")
    refused(ask(StandIn(), files=[("file", ("a.wav", recording())), ("file", ("b.wav", recording()))]), 422)


def test_model_that_cannot_be_reached(recording):
    response = ask(StandIn(RequestError(503, "away")), content=recording(), headers=AUDIO)
    refused(response, 503, "away")
    assert response.headers["Retry-After"] == "1"


def test_fault_of_ours_says_nothing_of_the_input(recording):
    response = ask(StandIn(RuntimeError("secret")), content=recording(), headers=AUDIO)
    refused(response, 500, "internal error")
    assert "secret" not in response.text


def test_other_routes():
    assert ask(StandIn(), "GET", "/v1/model").json() == CARD.model_dump(mode="json")
    assert ask(StandIn(), "GET", "/-/healthz").text == "success"
    refused(ask(StandIn(), "GET", "/nothing"), 404)
    refused(ask(StandIn(), "GET", "/v1/emotion"), 405)


def test_documentation():
    paths = ask(StandIn(), "GET", "/openapi.json").json()["paths"]
    post = paths["/v1/emotion"]["post"]
    assert set(post["requestBody"]["content"]) == {"audio/*", "application/octet-stream", "multipart/form-data"}
    assert {"200", "413", "415", "422", "503"} <= set(post["responses"])
    assert post["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Answer")
    assert post["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
    assert ask(StandIn(), "GET", "/docs").status_code == 200
