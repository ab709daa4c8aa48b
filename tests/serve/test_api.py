"""The HTTP API in front of a stand-in model: what it answers, and that bad input is never a 500."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import httpx
import numpy as np
import pytest
from support.standin import CARD, StandIn

from lakd_ray.config import CanaryConfig, ServeConfig
from lakd_ray.inference.results import EmotionResult
from lakd_ray.serve.api import ModelRouter, create_app
from lakd_ray.serve.decoding import RequestDecoder
from lakd_ray.serve.messages import BatchResponse
from lakd_ray.serve.upload import MEGABYTE, RequestError

Ask = Callable[..., httpx.Response]

LIMITS = ServeConfig(max_upload_mb=0.5, max_seconds=3.0)
AUDIO = {"Content-Type": "audio/wav"}
KEY = "a key that nobody guesses"


@pytest.fixture
def ask(decoders: RequestDecoder) -> Ask:
    """Sends a request to the API in front of models."""

    def ask(
        model: StandIn | ModelRouter,
        method: str = "POST",
        path: str = "/v1/emotion",
        *,
        limits: ServeConfig = LIMITS,
        **request: Any,
    ) -> httpx.Response:
        async def send() -> httpx.Response:
            app = create_app(model if isinstance(model, ModelRouter) else ModelRouter(model), limits, decoders)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
                return await client.request(method, path, **request)

        return asyncio.run(send())

    return ask


def test_the_language_that_a_student_hears_is_told_unless_one_was_given(ask, recording):
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
def test_raw_body(ask, recording, format, kind):
    model = StandIn()
    response = ask(model, content=recording(1.0, format=format), headers={"Content-Type": kind})
    assert response.status_code == 200, response.text
    answer = EmotionResult.model_validate(response.json())
    assert answer.emotion == "neutral"
    assert answer.probabilities == {"anger": 0.1, "happiness": 0.2, "neutral": 0.6, "sadness": 0.1}
    assert answer.language is None
    assert answer.model == "student"
    assert answer.duration_s == pytest.approx(1.0, abs=0.1)  # lossy formats pad
    assert model.received[0].dtype == np.float32
    assert model.received[0].ndim == 1


def test_stereo_at_another_rate(ask, recording):
    model = StandIn()
    response = ask(model, content=recording(0.5, rate=8_000, channels=2), headers=AUDIO)
    assert response.json()["duration_s"] == pytest.approx(0.5, abs=0.01)


def test_multipart(ask, recording):
    model = StandIn()
    response = ask(model, files={"file": ("clip.wav", recording(2.0), "audio/wav")}, data={"note": "kept out"})
    assert response.status_code == 200, response.text
    assert len(model.received[0]) == 32_000


def test_language_is_echoed(ask, recording):
    response = ask(StandIn(), content=recording(), headers=AUDIO, params={"language": "de"})
    assert response.json()["language"] == "de"


@pytest.mark.parametrize("language", ["", "EN", "x" * 10_000])
def test_what_is_no_language_is_refused(ask, recording, language):
    model = StandIn()
    refused(ask(model, content=recording(), headers=AUDIO, params={"language": language}), 422, "language")
    assert not model.received


def test_a_language_that_was_not_trained_is_answered_with_a_warning(ask, recording):
    model = StandIn()
    answer = ask(model, content=recording(), headers=AUDIO, params={"language": "fr"}).json()
    assert answer["language"] == "fr"
    assert [remark["code"] for remark in answer["warnings"]] == ["language"]
    assert "en, de" in answer["warnings"][0]["message"]
    assert model.told == ["fr"]


def test_warnings(ask, recording):
    def codes(content: bytes) -> list[str]:
        return [remark["code"] for remark in ask(StandIn(), content=content, headers=AUDIO).json()["warnings"]]

    assert codes(recording(2.0)) == []
    assert codes(recording(0.4)) == ["short"]
    assert codes(recording(2.0, loudness=5.0)) == ["clipped"]
    assert codes(recording(2.0, loudness=0.0001)) == ["silent"]


def test_timeline(ask, recording):
    model = StandIn()
    request = {"content": recording(2.9), "headers": AUDIO}
    assert ask(model, **request).json()["segments"] is None
    model.received.clear()
    segments = ask(model, params={"window_s": 1, "hop_s": 0.5}, **request).json()["segments"]
    assert [segment["start_s"] for segment in segments] == [0.0, 0.5, 1.0, 1.5, 1.9]
    assert [segment["end_s"] for segment in segments] == pytest.approx([1.0, 1.5, 2.0, 2.5, 2.9])
    assert sorted({len(wave_T) for wave_T in model.received}) == [16_000, 46_400]
    assert segments[0]["emotion"] == "neutral"
    assert len(ask(model, params={"window_s": 30}, **request).json()["segments"]) == 1


def test_timelines_that_cannot_be(ask, recording):
    request = {"content": recording(2.9), "headers": AUDIO}
    refused(ask(StandIn(), params={"hop_s": 1}, **request), 422, "window_s")
    refused(ask(StandIn(), params={"window_s": 0}, **request), 422, "window_s")
    refused(ask(StandIn(), params={"window_s": "nan"}, **request), 422, "window_s")
    many = {"window_s": 0.25, "hop_s": 0.05}
    long = {"content": recording(40.0, rate=8_000), "headers": AUDIO, "limits": ServeConfig()}
    refused(ask(StandIn(), params=many, **long), 422, "segments", "hop_s")


def test_the_most_probable(ask, recording):
    answer = ask(StandIn(), content=recording(), headers=AUDIO, params={"top_k": 2}).json()
    assert list(answer["probabilities"].items()) == [("neutral", 0.6), ("happiness", 0.2)]


def test_batch(ask, recording):
    files = [recording(1.0), b"no audio", b"", recording(2.0, format="FLAC")]
    response = ask(
        StandIn(), path="/v1/emotion:batch", files=[("file", (f"{n}.wav", one)) for n, one in enumerate(files)]
    )
    items = BatchResponse.model_validate(response.json()).items
    assert [(item.name, item.status) for item in items] == [
        ("0.wav", 200), ("1.wav", 422), ("2.wav", 422), ("3.wav", 200),
    ]  # fmt: skip
    assert items[3].result is not None and items[3].result.duration_s == pytest.approx(2.0)
    assert "cannot decode" in (items[1].error or "")


def test_batch_within_limits(ask, recording):
    def send(*files: bytes, **limits: Any) -> httpx.Response:
        form = [("file", ("a", one)) for one in files]
        given = LIMITS.model_copy(update=limits)
        return ask(StandIn(), path="/v1/emotion:batch", files=form, limits=given)

    refused(send(*[recording(0.2)] * 3, max_files=2), 422, "2")
    refused(send(*[b"\0" * 400_000] * 7), 413, "2 MB")
    small, large = send(recording(0.2), b"\0" * 500_001).json()["items"]
    assert (small["status"], large["status"]) == (200, 422)
    refused(ask(StandIn(), path="/v1/emotion:batch", content=recording(), headers=AUDIO), 415, "multipart")


def test_keys(ask, recording, tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# the first customer\n{KEY}\n")
    limits = LIMITS.model_copy(update={"api_keys_file": str(file)})

    def status(header: str | None, path: str = "/v1/emotion") -> int:
        headers = AUDIO | ({} if header is None else {"Authorization": header})
        method = "POST" if path == "/v1/emotion" else "GET"
        return ask(StandIn(), method, path, limits=limits, content=recording(), headers=headers).status_code

    assert [status(header) for header in (None, "", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ")] == [401] * 6
    assert status(f"Bearer {KEY}") == status(f"bearer  {KEY}") == 200
    assert status(None, "/v1/model") == status(None, "/metrics") == 401
    assert status(None, "/-/healthz") == status(None, "/openapi.json") == 200
    refusal = ask(StandIn(), limits=limits, content=recording(), headers=AUDIO)
    refused(refusal, 401, "Bearer")
    assert refusal.headers["WWW-Authenticate"] == "Bearer"
    monkeypatch.setenv("LAKD_API_KEYS", "another long enough key, ")
    assert status("Bearer another long enough key") == status(f"Bearer {KEY}") == 200


def test_two_models(ask, recording):
    stable, canary = StandIn(), StandIn(name="canary")
    models = ModelRouter(stable, canary, 0.5)
    clips = [recording(0.2 + 0.01 * n) for n in range(40)]

    def who(content: bytes, models: ModelRouter = models, **headers: str) -> str:
        return str(ask(models, content=content, headers=AUDIO | headers).json()["model"])

    first = [who(clip) for clip in clips]
    assert 8 <= first.count("canary") <= 32
    assert [who(clip) for clip in clips] == first
    assert {who(clip, **{"X-Model": "canary"}) for clip in clips[:5]} == {"canary"}
    assert {who(clip, **{"X-Model": "stable"}) for clip in clips[:5]} == {"student"}
    refused(ask(ModelRouter(stable), content=clips[0], headers=AUDIO | {"X-Model": "canary"}), 422, "X-Model")
    assert CanaryConfig(checkpoint="/a").traffic_fraction == 0


def test_slow_uploads_and_models_meet_the_deadline(ask, recording):
    limits = LIMITS.model_copy(update={"deadline_s": 0.3})

    async def chunks() -> AsyncIterator[bytes]:
        yield recording()[:100]
        await asyncio.Event().wait()

    refused(ask(StandIn(), content=chunks(), headers=AUDIO, limits=limits), 408, "0.3 s")
    refused(ask(StandIn(waits=True), content=recording(), headers=AUDIO, limits=limits), 408)


def test_metrics(decoders, recording):
    async def send() -> str:
        app = create_app(ModelRouter(StandIn()), LIMITS, decoders)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://endpoint") as client:
            for content in (recording(2.0), recording(1.0), b"none"):
                await client.post("/v1/emotion", content=content, headers=AUDIO)
            await client.get("/some/strange/path")
            return (await client.get("/metrics")).text

    lines = dict(line.rsplit(" ", 1) for line in asyncio.run(send()).splitlines() if not line.startswith("#"))
    assert lines['lakd_requests_total{route="/v1/emotion",status="200"}'] == "2.0"
    assert lines['lakd_requests_total{route="/v1/emotion",status="422"}'] == "1.0"
    assert lines['lakd_requests_total{route="none",status="404"}'] == "1.0"
    assert lines['lakd_audio_seconds_total{model="student"}'] == "3.0"
    assert lines['lakd_emotions_total{emotion="neutral",model="student"}'] == "2.0"
    assert float(lines['lakd_request_seconds_count{route="/v1/emotion"}']) == 3


def upload(chunk: bytes, drawn: list[int]) -> AsyncIterator[bytes]:
    """An endless upload without a Content-Length."""

    async def chunks() -> AsyncIterator[bytes]:
        while len(drawn) < 1000:
            drawn.append(len(chunk))
            yield chunk

    return chunks()


def test_declared_length_is_refused_before_reading(ask):
    drawn: list[int] = []
    headers = {**AUDIO, "Content-Length": "600000"}
    refused(ask(StandIn(), content=upload(b"\0" * 100_000, drawn), headers=headers), 413, "0.5 MB")
    assert not drawn


@pytest.mark.parametrize("kind", ["audio/wav", "multipart/form-data; boundary=edge"])
def test_undeclared_length_is_counted(ask, kind):
    drawn: list[int] = []
    first = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    async def chunks() -> AsyncIterator[bytes]:
        yield first
        async for chunk in upload(b"\0" * 100_000, drawn):
            yield chunk

    refused(ask(StandIn(), content=chunks(), headers={"Content-Type": kind}), 413, "0.5 MB")
    assert sum(drawn) <= LIMITS.max_upload_mb * MEGABYTE + 200_000


def test_wrong_declared_length_is_harmless(ask, recording):
    async def chunks() -> AsyncIterator[bytes]:
        yield recording()

    for declared in ("9" * 500, "-1", "many"):
        response = ask(StandIn(), content=chunks(), headers={**AUDIO, "Content-Length": declared})
        assert response.status_code in (200, 413)


def test_file_over_the_limit_within_the_forms_allowance(ask):
    refused(ask(StandIn(), files={"file": ("a.wav", b"\0" * 500_001)}), 413)


def test_too_long(ask, recording):
    refused(ask(StandIn(), content=recording(60.0, rate=8_000, format="OGG"), headers=AUDIO), 413, "3 s")


def test_exactly_long_enough(ask, recording):
    for rate in (8_000, 11_025, 16_000, 44_100):
        response = ask(StandIn(), content=recording(3.0, rate=rate), headers=AUDIO)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/json", "application/x-www-form-urlencoded", "é"])
def test_other_content_types(ask, recording, kind):
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


def test_undecodable(ask, recording):
    for content in broken_recordings(recording):
        refused(ask(StandIn(), content=content, headers=AUDIO), 422)


@pytest.mark.parametrize("rate", [15_999, 47_999, 192_001, 2_000_000_011])
def test_odd_sample_rates_cost_nothing(ask, recording, rate):
    refused(ask(StandIn(), content=recording(1000 / rate, rate=rate), headers=AUDIO), 422, f"{rate} Hz")


def test_damaged_recordings_never_break_the_endpoint(ask, recording):
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
def test_bad_forms(ask, kind, body):
    refused(ask(StandIn(), content=body, headers={"Content-Type": kind.encode("latin-1")}), 422)


def test_form_with_the_file_elsewhere(ask, recording):
    refused(ask(StandIn(), files={"audio": ("a.wav", recording())}), 422, "`file`")
    refused(ask(StandIn(), files=[("file", ("a.wav", recording())), ("file", ("b.wav", recording()))]), 422)


def test_model_that_cannot_be_reached(ask, recording):
    response = ask(StandIn(RequestError(503, "away")), content=recording(), headers=AUDIO)
    refused(response, 503, "away")
    assert response.headers["Retry-After"] == "1"


def test_fault_of_ours_says_nothing_of_the_input(ask, recording):
    response = ask(StandIn(RuntimeError("secret")), content=recording(), headers=AUDIO)
    refused(response, 500, "internal error")
    assert "secret" not in response.text


def test_other_routes(ask):
    assert ask(StandIn(), "GET", "/v1/model").json() == CARD.model_dump(mode="json")
    assert ask(StandIn(), "GET", "/-/healthz").text == "success"
    refused(ask(StandIn(), "GET", "/nothing"), 404)
    refused(ask(StandIn(), "GET", "/v1/emotion"), 405)


def test_documentation(ask):
    paths = ask(StandIn(), "GET", "/openapi.json").json()["paths"]
    post = paths["/v1/emotion"]["post"]
    assert set(post["requestBody"]["content"]) == {"audio/*", "application/octet-stream", "multipart/form-data"}
    assert {"200", "401", "408", "413", "415", "422", "429", "503"} <= set(post["responses"])
    assert post["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/EmotionResult")
    assert post["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorResponse")
    page = ask(StandIn(), "GET", "/docs")
    assert page.status_code == 200
    assert "//" not in page.text.replace("window.location.origin + '/docs", ""), "nothing comes from other hosts"
    for script in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert ask(StandIn(), "GET", script).status_code == 200
