"""The client returns results, raises on errors, and retries busy endpoints and broken connections."""

import email
import email.policy
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lakd_ray.errors import DataError, ResourceError
from lakd_ray.serve.client import Client

RESULT: dict[str, Any] = {
    "emotion": "anger", "probabilities": {"anger": 1.0}, "language": "de", "duration_s": 1.5, "model": "student",
    "version": "0123456789abcdef",
}  # fmt: skip
OK = (200, json.dumps(RESULT).encode(), {})
BROKEN = (0, b"", {})
STOPPING = (404, b"Path '/v1/emotion' not found. Ping http://.../-/routes for available routes.", {})
BUSY = (429, b"busy", {"Retry-After": "0"})


class Server(ThreadingHTTPServer):
    """A server that sends prepared responses, the last one repeatedly, and records the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.responses: list[tuple[int, bytes, dict[str, str]]] = []
        self.received: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        responses = self.server.responses
        status, body, headers = responses.pop(0) if len(responses) > 1 else responses[0]
        self.server.received.append((self.path, dict(self.headers), content))
        if not status:
            self.close_connection = True  # without a response, as when a proxy is killed
            return
        self.send_response_only(status)  # without the date of today
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Override the default, which logs each request to stderr."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("LAKD_API_KEY", raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def predict(server: Server, *responses: tuple[int, bytes, dict[str, str]], language: str | None = "de", **options: Any):
    server.responses = list(responses)
    with Client(server.url, **options) as client:
        return client.predict(b"recording", language)


def test_result(server):
    result = predict(server, OK)
    assert result.model_dump(exclude_unset=True) == RESULT
    path, headers, content = server.received[0]
    assert (path, content) == ("/v1/emotion?language=de", b"recording")
    assert "Authorization" not in headers


def test_query_parameters(server):
    server.responses = [OK]
    with Client(server.url) as client:
        client.predict(b"recording")
        client.predict(b"recording", "en", window_s=2.0, hop_s=0.5, top_k=3)
    assert [path for path, _, _ in server.received] == [
        "/v1/emotion", "/v1/emotion?language=en&window_s=2.0&hop_s=0.5&top_k=3",
    ]  # fmt: skip


@pytest.mark.parametrize("files", [{"a.wav": b"\x00one", "ü b.flac": b"two\r\n"}, [("same", b"1"), ("same", b"2")]])
def test_batch_is_sent_as_one_form(server, files):
    named = list(files.items() if isinstance(files, dict) else files)
    items = [
        {"name": named[0][0], "status": 200, "result": RESULT},
        {"name": "x", "status": 422, "error": "unsupported"},
    ]
    server.responses = [BUSY, (200, json.dumps({"items": items}).encode(), {})]
    with Client(server.url) as client:
        accepted, rejected = client.predict_batch(files, "de", top_k=1).items
    assert accepted.result is not None and accepted.result.emotion == "anger"
    assert (rejected.status, rejected.error, rejected.result) == (422, "unsupported", None)
    for path, headers, content in server.received:  # the form is also complete in the retry
        assert path == "/v1/emotion:batch?language=de&top_k=1"
        head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
        parts = email.message_from_bytes(head + content, policy=email.policy.HTTP).iter_parts()
        sent = [(part.get_filename(), part.get_payload(decode=True)) for part in parts]
        assert [content for _, content in sent] == [content for _, content in named]
        assert all(f'name="file"; filename="{name}"'.encode() in content for name, _ in named)


def test_an_endpoint_that_is_being_stopped_is_queried_again(server):
    assert predict(server, STOPPING, OK).emotion == "anger"
    with pytest.raises(ResourceError, match="404"):  # of a different server
        predict(server, (404, b"no such page", {}), OK)


def test_batch_response_needs_one_item_per_recording(server):
    server.responses = [(200, b'{"items": []}', {})]
    with Client(server.url) as client, pytest.raises(ResourceError, match="returned 0 items, expected 1"):
        client.predict_batch({"a": b""})


@pytest.mark.parametrize(("argument", "variable", "header"), [
    ("k1", None, "Bearer k1"), (None, "k2\n", "Bearer k2"), ("k1", "k2", "Bearer k1"), ("", "k2", None),
])  # fmt: skip
def test_api_key_from_argument_or_environment(server, monkeypatch, argument, variable, header):
    if variable is not None:
        monkeypatch.setenv("LAKD_API_KEY", variable)
    predict(server, OK, api_key=argument)
    assert server.received[0][1].get("Authorization") == header


@pytest.mark.parametrize(
    ("key", "message"), [(None, "requires an API key.*set LAKD_API_KEY"), ("k", "rejects the API key")]
)
def test_missing_or_invalid_key(server, key, message):
    with pytest.raises(ResourceError, match=message) as caught:
        predict(server, (401, b'{"error": "a key is required"}', {}), api_key=key)
    assert "401: a key is required" in str(caught.value)


@pytest.mark.parametrize("status", [413, 415, 422])
def test_rejected_recording_raises_data_error(server, status):
    with pytest.raises(DataError, match="unsupported"):
        predict(server, (status, b'{"error": "unsupported"}', {}))
    assert len(server.received) == 1


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (200, b"{}"), (500, b"odd"), (404, b'{"error": "?"}')])
def test_unexpected_responses(server, status, body):
    with pytest.raises(ResourceError, match=str(status)):
        predict(server, (status, body, {}))
    assert len(server.received) == 1


@pytest.mark.parametrize("status", [429, 502, 503])
@pytest.mark.parametrize("header", ["0", "0.01", "-1"])
def test_busy_endpoint_is_retried(server, status, header):
    busy = (status, b"busy", {"Retry-After": header})
    assert predict(server, busy, busy, OK).emotion == "anger"
    assert [content for _, _, content in server.received] == [b"recording"] * 3


DATE = "Fri, 31 Dec 2027 23:59:59 GMT"


@pytest.mark.parametrize(
    "headers", [{}, {"Retry-After": DATE, "Date": DATE}, {"Retry-After": "soon"}, {"Retry-After": "nan"}]
)
def test_busy_endpoint_without_seconds_in_retry_after_is_retried(server, headers):
    assert predict(server, (503, b"busy", headers), OK).emotion == "anger"


def test_retries_respect_the_time_of_the_endpoint(server):
    started = time.monotonic()
    predict(server, (503, b"busy", {"Retry-After": "0.3"}), OK)
    assert time.monotonic() - started >= 0.3
    server.received.clear()
    later = {"Date": "Fri, 31 Dec 2027 22:59:59 GMT", "Retry-After": DATE}  # an hour later, by the endpoint's clock
    with pytest.raises(ResourceError, match="retried for 5 s"):
        predict(server, (429, b"", later), timeout_s=5)
    assert len(server.received) == 1


def test_retries_end_at_the_timeout(server):
    with pytest.raises(ResourceError, match=r"returned 429: busy; retried for 5 s"):
        predict(server, (429, b"busy", {"Retry-After": "3600"}), timeout_s=5)
    assert len(server.received) == 1


def test_broken_connection_is_retried(server):
    assert predict(server, BROKEN, BROKEN, OK).emotion == "anger"
    with pytest.raises(ResourceError, match="no response"):
        predict(server, BROKEN)
    assert len(server.received) == 6


def test_endpoint_that_is_not_running(server):
    port = server.server_port
    server.server_close()
    with pytest.raises(ResourceError, match="check the URL"), Client(f"http://127.0.0.1:{port}") as client:
        client.model_info()


class Proxy(ThreadingHTTPServer):
    """A forward proxy that records the requests and sends one response."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.responses: list[tuple[int, bytes, dict[str, str]]] = [OK]
        self.received: list[tuple[str, dict[str, str], bytes]] = []


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    with Proxy() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


def test_host_that_only_the_proxy_reaches(proxy):
    with Client("http://emotion.invalid:8000") as client:
        assert client.predict(b"recording", "de").emotion == "anger"
    assert [path for path, _, _ in proxy.received] == ["http://emotion.invalid:8000/v1/emotion?language=de"]


def test_endpoint_on_this_machine_uses_no_proxy(proxy, server):
    assert predict(server, OK).emotion == "anger"
    with Client(f"http://localhost:{server.server_port}") as client:
        assert client.predict(b"recording").emotion == "anger"
    assert not proxy.received and len(server.received) == 2


def test_host_in_no_proxy_uses_no_proxy(proxy, monkeypatch):
    monkeypatch.setenv("no_proxy", "emotion.invalid")
    with (
        Client("http://emotion.invalid:8000", timeout_s=5) as client,
        pytest.raises(ResourceError, match="no response"),
    ):
        client.model_info()
    assert not proxy.received


def test_proxy_that_cannot_be_used(proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", "ftp://user:secret@proxy.invalid:21")
    with pytest.raises(ResourceError, match=r"the proxy proxy\.invalid .*no_proxy") as caught:
        Client("http://emotion.invalid:8000")
    assert "secret" not in str(caught.value)


def test_rejection_of_a_host_or_a_page_is_no_missing_key(server):
    with pytest.raises(ResourceError, match="returned 403: a page"):
        predict(server, (403, b'{"error": "a page of a different site"}', {}), api_key="k")


def test_client_imports_neither_ray_nor_torch():
    code = "import sys, lakd_ray.serve.client; print({'ray', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
