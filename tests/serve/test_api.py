"""The HTTP API in front of a fake model: its responses, and that invalid input never causes a 5xx."""

import asyncio
import io
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import soundfile
from support.fake_model import MODEL_INFO, FakeModel
from support.local_endpoint import running_api

import lakd_ray
from lakd_ray.config import CanaryConfig, ServeConfig
from lakd_ray.inference.results import EmotionResult
from lakd_ray.serve.api import ModelRouter, create_app
from lakd_ray.serve.decoding import RequestDecoder
from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.messages import BatchResponse
from lakd_ray.serve.upload import MEGABYTE

Send = Callable[..., httpx.Response]

LIMITS = ServeConfig(max_upload_mb=0.5, max_seconds=3.0)
AUDIO = {"Content-Type": "audio/wav"}
KEY = "a key that is hard to guess"


@pytest.fixture
def send(decoders: RequestDecoder) -> Send:
    """Sends a request to the API of the given models."""

    def send_request(
        model: FakeModel | ModelRouter,
        method: str = "POST",
        path: str = "/v1/emotion",
        *,
        limits: ServeConfig = LIMITS,
        **request: Any,
    ) -> httpx.Response:
        async def request_app() -> httpx.Response:
            app = create_app(model if isinstance(model, ModelRouter) else ModelRouter(model), limits, decoders)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **request)

        return asyncio.run(request_app())

    return send_request


def test_identified_language_is_returned_unless_the_request_specifies_one(send, recording):
    model = FakeModel(language="de", language_probability=0.75)
    identified = send(model, content=recording(1.0), headers=AUDIO).json()
    assert (identified["language"], identified["language_probability"]) == ("de", 0.75)
    specified = send(model, path="/v1/emotion?language=en", content=recording(1.0), headers=AUDIO).json()
    assert (specified["language"], specified["language_probability"]) == ("en", None)


def assert_error(response: httpx.Response, status: int, *texts: str) -> None:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    for text in texts:
        assert text in response.json()["error"]


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("kind", ["audio/x-something", "application/octet-stream", "Audio/WAV; codecs=1", "video/webm"])
def test_raw_body_is_predicted(send, recording, format, kind):
    model = FakeModel()
    response = send(model, content=recording(1.0, format=format), headers={"Content-Type": kind})
    assert response.status_code == 200, response.text
    result = EmotionResult.model_validate(response.json())
    assert result.emotion == "neutral"
    assert result.probabilities == {"anger": 0.1, "happiness": 0.2, "neutral": 0.6, "sadness": 0.1}
    assert result.language is None
    assert result.model == "student"
    assert result.duration_s == pytest.approx(1.0, abs=0.1)  # lossy formats pad
    assert model.waves[0].dtype == np.float32
    assert model.waves[0].ndim == 1


def test_stereo_recording_at_a_different_rate(send, recording):
    model = FakeModel()
    response = send(model, content=recording(0.5, rate=8_000, channels=2), headers=AUDIO)
    assert response.json()["duration_s"] == pytest.approx(0.5, abs=0.01)


def test_multipart_form_is_predicted(send, recording):
    model = FakeModel()
    response = send(model, files={"file": ("clip.wav", recording(2.0), "audio/wav")})
    assert response.status_code == 200, response.text
    assert len(model.waves[0]) == 32_000


def test_specified_language_is_returned(send, recording):
    response = send(FakeModel(), content=recording(), headers=AUDIO, params={"language": "de"})
    assert response.json()["language"] == "de"


@pytest.mark.parametrize("language", ["", "EN", "x" * 10_000])
def test_invalid_language_code_is_rejected(send, recording, language):
    model = FakeModel()
    assert_error(send(model, content=recording(), headers=AUDIO, params={"language": language}), 422, "language")
    assert not model.waves


def test_language_outside_the_training_data_causes_a_warning(send, recording):
    model = FakeModel()
    result = send(model, content=recording(), headers=AUDIO, params={"language": "fr"}).json()
    assert result["language"] == "fr"
    assert [warning["code"] for warning in result["warnings"]] == ["language"]
    assert "en, de" in result["warnings"][0]["message"]
    assert model.languages == ["fr"]


def test_warnings_about_the_recording(send, recording):
    def codes(content: bytes) -> list[str]:
        return [warning["code"] for warning in send(FakeModel(), content=content, headers=AUDIO).json()["warnings"]]

    assert codes(recording(2.0)) == []
    assert codes(recording(0.4)) == ["short"]
    assert codes(recording(2.0, loudness=5.0)) == ["clipped"]
    assert codes(recording(2.0, loudness=0.0001)) == ["silent"]


def test_channels_of_opposite_polarity_cause_a_warning(send):
    wave_T = 0.3 * np.sin(np.arange(32_000) / 13)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([wave_T, -wave_T], axis=1), 16_000, format="WAV")
    model = FakeModel()
    result = send(model, content=buffer.getvalue(), headers=AUDIO).json()
    assert [(warning["code"], "only channel 1" in warning["message"]) for warning in result["warnings"]] == [
        ("channels", True)
    ]
    assert np.abs(model.waves[0]).max() == pytest.approx(0.3, abs=0.01)


def test_timeline_has_segments(send, recording):
    model = FakeModel()
    request = {"content": recording(2.9), "headers": AUDIO}
    assert send(model, **request).json()["segments"] is None
    model.waves.clear()
    segments = send(model, params={"window_s": 1, "hop_s": 0.5}, **request).json()["segments"]
    assert [segment["start_s"] for segment in segments] == [0.0, 0.5, 1.0, 1.5, 1.9]
    assert [segment["end_s"] for segment in segments] == pytest.approx([1.0, 1.5, 2.0, 2.5, 2.9])
    assert sorted({len(wave_T) for wave_T in model.waves}) == [16_000, 46_400]
    assert segments[0]["emotion"] == "neutral"
    assert len(send(model, params={"window_s": 30}, **request).json()["segments"]) == 1


def test_invalid_timelines_are_rejected(send, recording):
    request = {"content": recording(2.9), "headers": AUDIO}
    assert_error(send(FakeModel(), params={"hop_s": 1}, **request), 422, "window_s")
    assert_error(send(FakeModel(), params={"window_s": 0}, **request), 422, "window_s")
    assert_error(send(FakeModel(), params={"window_s": "nan"}, **request), 422, "window_s")
    small_hop = {"window_s": 0.25, "hop_s": 0.05}
    long = {"content": recording(40.0, rate=8_000), "headers": AUDIO, "limits": ServeConfig()}
    assert_error(send(FakeModel(), params=small_hop, **long), 422, "segments", "hop_s")


def test_top_k_returns_the_most_probable_emotions(send, recording):
    result = send(FakeModel(), content=recording(), headers=AUDIO, params={"top_k": 2}).json()
    assert list(result["probabilities"].items()) == [("neutral", 0.6), ("happiness", 0.2)]


def test_batch_has_a_result_or_an_error_for_each_file(send, recording):
    files = [recording(1.0), b"no audio", b"", recording(2.0, format="FLAC")]
    response = send(
        FakeModel(),
        path="/v1/emotion:batch",
        files=[("file", (f"{n}.wav", content)) for n, content in enumerate(files)],
    )
    items = BatchResponse.model_validate(response.json()).items
    assert [(item.name, item.status) for item in items] == [
        ("0.wav", 200), ("1.wav", 422), ("2.wav", 422), ("3.wav", 200),
    ]  # fmt: skip
    assert items[3].result is not None and items[3].result.duration_s == pytest.approx(2.0)
    assert "cannot decode" in (items[1].error or "")


def test_batch_limits_are_enforced(send, recording):
    def send_batch(*files: bytes, **limits: Any) -> httpx.Response:
        form = [("file", ("a", content)) for content in files]
        config = LIMITS.model_copy(update=limits)
        return send(FakeModel(), path="/v1/emotion:batch", files=form, limits=config)

    assert_error(send_batch(*[recording(0.2)] * 3, max_files=2), 422, "2")
    assert_error(send_batch(*[b"\0" * 400_000] * 7), 413, "2 MB")
    small, large = send_batch(recording(0.2), b"\0" * 500_001).json()["items"]
    assert (small["status"], large["status"]) == (200, 422)
    assert_error(send(FakeModel(), path="/v1/emotion:batch", content=recording(), headers=AUDIO), 415, "multipart")


def test_routes_require_an_api_key(send, recording, tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# first customer\n{KEY}\n")
    limits = LIMITS.model_copy(update={"api_keys_file": str(file)})

    def status(header: str | None, path: str = "/v1/emotion") -> int:
        headers = AUDIO | ({} if header is None else {"Authorization": header})
        method = "POST" if path == "/v1/emotion" else "GET"
        return send(FakeModel(), method, path, limits=limits, content=recording(), headers=headers).status_code

    assert [status(header) for header in (None, "", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ")] == [401] * 6
    assert status(f"Bearer {KEY}") == status(f"bearer  {KEY}") == 200
    assert status(None, "/v1/model") == status(None, "/metrics") == 401
    assert status(None, "/-/healthz") == status(None, "/openapi.json") == 200
    response = send(FakeModel(), limits=limits, content=recording(), headers=AUDIO)
    assert_error(response, 401, "Bearer")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    monkeypatch.setenv("LAKD_API_KEYS", "a different key of valid length, ")
    assert status("Bearer a different key of valid length") == status(f"Bearer {KEY}") == 200


def test_canary_receives_a_stable_fraction_of_recordings(send, recording):
    stable, canary = FakeModel(), FakeModel(name="canary")
    models = ModelRouter(stable, canary, 0.5)
    clips = [recording(0.2 + 0.01 * n) for n in range(40)]

    def model_of(content: bytes, models: ModelRouter = models, **headers: str) -> str:
        return str(send(models, content=content, headers=AUDIO | headers).json()["model"])

    first = [model_of(clip) for clip in clips]
    assert 8 <= first.count("canary") <= 32
    assert [model_of(clip) for clip in clips] == first
    assert {model_of(clip, **{"X-Model": "canary"}) for clip in clips[:5]} == {"canary"}
    assert {model_of(clip, **{"X-Model": "stable"}) for clip in clips[:5]} == {"student"}
    assert_error(send(ModelRouter(stable), content=clips[0], headers=AUDIO | {"X-Model": "canary"}), 422, "X-Model")
    assert CanaryConfig(checkpoint="/a").traffic_fraction == 0


def test_deadline_ends_slow_uploads_and_predictions(send, recording):
    limits = LIMITS.model_copy(update={"deadline_s": 0.3})

    async def chunks() -> AsyncIterator[bytes]:
        yield recording()[:100]
        await asyncio.Event().wait()

    assert_error(send(FakeModel(), content=chunks(), headers=AUDIO, limits=limits), 408, "0.3 s")
    assert_error(send(FakeModel(hangs=True), content=recording(), headers=AUDIO, limits=limits), 408)


def test_metrics_count_requests_and_predictions(decoders, recording):
    async def request_metrics() -> str:
        app = create_app(ModelRouter(FakeModel()), LIMITS, decoders)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            for content in (recording(2.0), recording(1.0), b"none"):
                await client.post("/v1/emotion", content=content, headers=AUDIO)
            await client.get("/unknown/path")
            return (await client.get("/metrics")).text

    lines = dict(
        line.rsplit(" ", 1) for line in asyncio.run(request_metrics()).splitlines() if not line.startswith("#")
    )
    assert lines['lakd_requests_total{route="/v1/emotion",status="200"}'] == "2.0"
    assert lines['lakd_requests_total{route="/v1/emotion",status="422"}'] == "1.0"
    assert lines['lakd_requests_total{route="none",status="404"}'] == "1.0"
    assert lines['lakd_audio_seconds_total{model="student"}'] == "3.0"
    assert lines['lakd_emotions_total{emotion="neutral",model="student"}'] == "2.0"
    assert float(lines['lakd_request_seconds_count{route="/v1/emotion"}']) == 3


def endless_upload(chunk: bytes, sent: list[int]) -> AsyncIterator[bytes]:
    """An endless upload without a Content-Length."""

    async def chunks() -> AsyncIterator[bytes]:
        while len(sent) < 1000:
            sent.append(len(chunk))
            yield chunk

    return chunks()


def test_large_content_length_is_rejected_before_reading(send):
    sent: list[int] = []
    headers = {**AUDIO, "Content-Length": "600000"}
    assert_error(send(FakeModel(), content=endless_upload(b"\0" * 100_000, sent), headers=headers), 413, "0.5 MB")
    assert not sent


@pytest.mark.parametrize("kind", ["audio/wav", "multipart/form-data; boundary=edge"])
def test_body_without_content_length_is_limited(send, kind):
    sent: list[int] = []
    first = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    async def chunks() -> AsyncIterator[bytes]:
        yield first
        async for chunk in endless_upload(b"\0" * 100_000, sent):
            yield chunk

    assert_error(send(FakeModel(), content=chunks(), headers={"Content-Type": kind}), 413, "0.5 MB")
    assert sum(sent) <= LIMITS.max_upload_mb * MEGABYTE + 200_000


def test_invalid_content_length_causes_no_server_error(send, recording):
    async def chunks() -> AsyncIterator[bytes]:
        yield recording()

    for declared in ("9" * 500, "-1", "many"):
        response = send(FakeModel(), content=chunks(), headers={**AUDIO, "Content-Length": declared})
        assert response.status_code in (200, 413)


def test_file_above_the_limit_in_a_small_form_is_rejected(send):
    assert_error(send(FakeModel(), files={"file": ("a.wav", b"\0" * 500_001)}), 413)


def test_recording_above_the_duration_limit_is_rejected(send, recording):
    assert_error(send(FakeModel(), content=recording(60.0, rate=8_000, format="OGG"), headers=AUDIO), 413, "3 s")


def test_recording_of_the_maximum_duration_is_accepted(send, recording):
    for rate in (8_000, 11_025, 16_000, 44_100):
        response = send(FakeModel(), content=recording(3.0, rate=rate), headers=AUDIO)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("kind", [
    "video/mp4", "video/ogg", "video/x-matroska", "application/ogg", "application/mp4", "application/x-flac",
    "binary/octet-stream", "application/force-download", "video/3gpp; codecs=amr",
])  # fmt: skip
def test_types_that_programs_give_to_recordings_are_accepted(send, recording, kind):
    assert send(FakeModel(), content=recording(), headers={"Content-Type": kind}).status_code == 200


@pytest.mark.parametrize("kind", [
    None, "", "text/plain", "application/json", "application/x-www-form-urlencoded", "é", "application/ld+json",
    "application/xml", "image/png", "text/javascript", "application/javascript", "audio", "audio/", "multipart/mixed",
])  # fmt: skip
def test_other_content_types_are_rejected(send, recording, kind):
    headers = {} if kind is None else {"Content-Type": kind.encode("latin-1")}
    assert_error(send(FakeModel(), content=recording(), headers=headers), 415, "audio/*")


def broken_recordings(recording) -> Iterable[bytes]:
    complete = recording()
    generator = np.random.default_rng(1)
    yield from (b"", b"\0", b"RIFF", b"not audio at all", complete[:30], complete[:44], generator.bytes(5_000))
    yield recording(0.0)
    yield recording(0.05)
    yield recording(0.5, format="FLAC")[:60]
    yield recording(0.5, format="MP3")[:20]


def test_undecodable_recordings_are_rejected(send, recording):
    for content in broken_recordings(recording):
        assert_error(send(FakeModel(), content=content, headers=AUDIO), 422)


@pytest.mark.parametrize("rate", [15_999, 47_999, 192_001, 2_000_000_011])
def test_unusual_sample_rates_are_rejected(send, recording, rate):
    assert_error(send(FakeModel(), content=recording(1000 / rate, rate=rate), headers=AUDIO), 422, f"{rate} Hz")


def test_corrupted_recordings_cause_no_server_error(send, recording):
    generator = np.random.default_rng(2)
    for format in ("WAV", "FLAC", "OGG", "MP3"):
        for _ in range(10):
            content = bytearray(recording(0.3, format=format))
            for position in generator.integers(0, min(len(content), 200), 4):
                content[position] = generator.integers(256)
            response = send(FakeModel(), content=bytes(content), headers=AUDIO)
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
def test_invalid_forms_are_rejected(send, kind, body):
    assert_error(send(FakeModel(), content=body, headers={"Content-Type": kind.encode("latin-1")}), 422)


def test_form_with_wrong_file_fields_is_rejected(send, recording):
    assert_error(send(FakeModel(), files={"audio": ("a.wav", recording())}), 422, "`file`")
    assert_error(send(FakeModel(), files=[("file", ("a.wav", recording())), ("file", ("b.wav", recording()))]), 422)


@pytest.mark.parametrize(("path", "texts"), [
    ("/v1/emotion?lang=fi", ["`lang`", "did you mean `language`"]),
    ("/v1/emotion?Language=fi", ["`Language`", "did you mean `language`"]),
    ("/v1/emotion?windows_s=1", ["did you mean `window_s`"]),
    ("/v1/emotion?topk=1&language=en", ["did you mean `top_k`"]),
    ("/v1/emotion?zzzzzz=1", ["`zzzzzz`", "expected `language`, `window_s`, `hop_s`, `top_k`"]),
    ("/v1/emotion?=1", ["query parameter ``"]),
    ("/v1/emotion?%00%1b=1", [r"`\x00\x1b`"]),
    ("/v1/emotion?language=fi&language=en", ["`language` is given 2 times"]),
    ("/v1/emotion?window_s=1&window_s=1", ["`window_s` is given 2 times"]),
    ("/v1/emotion:batch?lang=fi", ["did you mean `language`"]),
    ("/v1/model?verbose=1", ["`verbose`", "has none"]),
    ("/metrics?format=json", ["`format`"]),
    ("/-/healthz?x=1", ["`x`"]),
])  # fmt: skip
def test_unknown_and_repeated_query_parameters_are_rejected(send, recording, path, texts):
    model = FakeModel()
    if "emotion" not in path:
        response = send(model, "GET", path)
    elif "batch" in path:
        response = send(model, path=path, files={"file": ("a.wav", recording())})
    else:
        response = send(model, path=path, content=recording(), headers=AUDIO)
    assert_error(response, 422, *texts)
    assert not model.waves


def test_repeated_header_of_the_model_is_rejected(send, recording):
    headers = [("Content-Type", "audio/wav"), ("X-Model", "stable"), ("X-Model", "canary")]
    assert_error(send(FakeModel(), content=recording(), headers=headers), 422, "X-Model")


@pytest.mark.parametrize("path", ["/v1/emotion", "/v1/emotion:batch"])
@pytest.mark.parametrize(("data", "texts"), [
    ({"language": "fi"}, ["form field `language`", "?language=fi"]),
    ({"file": "a text"}, ["a text"]),
    ({"response_format": "json"}, ["form field `response_format`"]),
])  # fmt: skip
def test_unknown_form_fields_are_rejected(send, recording, path, data, texts):
    model = FakeModel()
    response = send(model, path=path, files={"file": ("a.wav", recording())}, data=data)
    assert_error(response, 422, *texts)
    assert not model.waves


def test_misspelt_form_field_has_the_nearest_name(send, recording):
    assert_error(send(FakeModel(), files={"files": ("a.wav", recording())}), 422, "`files`", "did you mean `file`")


def test_unavailable_model_is_a_503(send, recording):
    busy = send(FakeModel(RequestError(503, "busy", retry_after_s=7)), content=recording(), headers=AUDIO)
    assert_error(busy, 503, "busy")
    assert busy.headers["Retry-After"] == "7"
    response = send(FakeModel(RequestError(503, "unavailable")), content=recording(), headers=AUDIO)
    assert_error(response, 503, "unavailable")
    assert response.headers["Retry-After"] == "1"


def test_internal_error_reveals_no_details(send, recording):
    response = send(FakeModel(RuntimeError("secret")), content=recording(), headers=AUDIO)
    assert_error(response, 500, "internal error")
    assert "secret" not in response.text


def test_other_routes_and_methods(send):
    assert send(FakeModel(), "GET", "/v1/model").json() == MODEL_INFO.model_dump(mode="json")
    assert send(FakeModel(), "GET", "/-/healthz").text == "success"
    assert_error(send(FakeModel(), "GET", "/nothing"), 404, "/nothing does not exist", "/docs")
    assert_error(send(FakeModel(), "GET", "/v1/emotion"), 405, "does not support GET")


OPERATIONS = {
    ("/v1/emotion", "post"): "predict",
    ("/v1/emotion:batch", "post"): "predict_batch",
    ("/v1/model", "get"): "get_model",
    ("/metrics", "get"): "get_metrics",
    ("/-/healthz", "get"): "get_health",
}


def test_openapi_paths_and_operation_ids_are_stable(send):
    document = send(FakeModel(), "GET", "/openapi.json").json()
    operations = {
        (path, method): operation for path, item in document["paths"].items() for method, operation in item.items()
    }
    assert {key: operation["operationId"] for key, operation in operations.items()} == OPERATIONS
    assert document["info"]["title"] == "lakd-ray"
    assert document["info"]["version"] == lakd_ray.__version__
    tags = {tag["name"] for tag in document["tags"]}
    for operation in operations.values():
        assert operation["summary"] and operation["description"]
        assert operation["responses"]["200"]["description"] != "Successful Response"  # FastAPI's default
        assert len(operation["tags"]) == 1 and tags.issuperset(operation["tags"])


def test_openapi_documents_bodies_and_errors(send):
    document = send(FakeModel(), "GET", "/openapi.json").json()
    predict = document["paths"]["/v1/emotion"]["post"]
    assert set(predict["requestBody"]["content"]) == {
        "audio/*",
        "video/*",
        "application/octet-stream",
        "multipart/form-data",
    }
    assert {"200", "400", "401", "403", "408", "413", "415", "421", "422", "429", "500", "503"} == set(
        predict["responses"]
    )
    assert {parameter["name"] for parameter in predict["parameters"]} == {
        "language", "window_s", "hop_s", "top_k", "X-Model",
    }  # fmt: skip
    ok = predict["responses"]["200"]["content"]["application/json"]["schema"]
    assert ok["$ref"].endswith("/EmotionResult")
    for item in document["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema["$ref"].endswith("/ErrorResponse"), (operation["operationId"], status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_docs_page_loads_nothing_from_other_hosts(send):
    page = send(FakeModel(), "GET", "/docs")
    assert page.status_code == 200
    assert "//" not in page.text.replace("window.location.origin + '/docs", "")
    for script in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert send(FakeModel(), "GET", script).status_code == 200


def test_large_uploads_wait_for_memory(decoders, recording):
    with running_api(FakeModel(), decoders, memory_mb=6.0, max_upload_mb=3.0) as url:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        large = recording(60.0)
        head = f"POST /v1/emotion HTTP/1.1\r\nHost: {address[0]}\r\nContent-Type: audio/wav\r\n"
        with socket.create_connection(address) as first, ThreadPoolExecutor() as pool:
            first.sendall(f"{head}Content-Length: {len(large)}\r\n\r\n".encode() + large[:1_000_000])
            while "lakd_requests_running 2.0" not in httpx.get(f"{url}/metrics").text:  # this request is one of them
                time.sleep(0.02)
            # while the first is incomplete, a small recording does not wait, a large one does
            waiting = pool.submit(httpx.post, f"{url}/v1/emotion", content=large, headers=AUDIO, timeout=60)
            assert httpx.post(f"{url}/v1/emotion", content=recording(1.0), headers=AUDIO).status_code == 200
            assert not waiting.done()
            first.sendall(large[1_000_000:])
            assert first.recv(4096).startswith(b"HTTP/1.1 200 ")
            assert waiting.result().status_code == 200
