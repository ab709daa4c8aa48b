"""The client: what becomes of answers, refusals and silence."""

import email
import email.policy
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lakd_ray.errors import DataError, ResourceError
from lakd_ray.serve.client import Client

ANSWER: dict[str, Any] = {
    "emotion": "anger", "probabilities": {"anger": 1.0}, "language": "de", "duration_s": 1.5, "model": "student",
    "version": "0123456789abcdef",
}  # fmt: skip
OK = (200, json.dumps(ANSWER).encode(), {})
BROKEN = (0, b"", {})
BUSY = (429, b"busy", {"Retry-After": "0"})


class Server(ThreadingHTTPServer):
    """Answers what it was told to, the last of it again and again, and keeps the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[tuple[int, bytes, dict[str, str]]] = []
        self.asked: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        replies = self.server.replies
        status, body, headers = replies.pop(0) if len(replies) > 1 else replies[0]
        self.server.asked.append((self.path, dict(self.headers), content))
        if not status:
            self.close_connection = True  # without a word, as when a proxy is killed
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("LAKD_API_KEY", raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, *replies: tuple[int, bytes, dict[str, str]], language: str | None = "de", **options: Any):
    server.replies = list(replies)
    with Client(server.url, **options) as client:
        return client.predict(b"recording", language)


def test_answer(server):
    answer = ask(server, OK)
    assert answer.model_dump(exclude_unset=True) == ANSWER
    path, headers, content = server.asked[0]
    assert (path, content) == ("/v1/emotion?language=de", b"recording")
    assert "Authorization" not in headers


def test_parameters(server):
    server.replies = [OK]
    with Client(server.url) as client:
        client.predict(b"recording")
        client.predict(b"recording", "en", window_s=2.0, hop_s=0.5, top_k=3)
    assert [path for path, _, _ in server.asked] == [
        "/v1/emotion", "/v1/emotion?language=en&window_s=2.0&hop_s=0.5&top_k=3",
    ]  # fmt: skip


@pytest.mark.parametrize("files", [{"a.wav": b"\x00one", "ü b.flac": b"two\r\n"}, [("same", b"1"), ("same", b"2")]])
def test_several_recordings_are_one_form(server, files):
    named = list(files.items() if isinstance(files, dict) else files)
    items = [{"name": named[0][0], "status": 200, "result": ANSWER}, {"name": "x", "status": 422, "error": "too odd"}]
    server.replies = [BUSY, (200, json.dumps({"items": items}).encode(), {})]
    with Client(server.url) as client:
        found = client.predict_batch(files, "de", top_k=1).items
    assert found[0].result is not None and found[0].result.emotion == "anger"
    assert (found[1].status, found[1].error, found[1].result) == (422, "too odd", None)
    for path, headers, content in server.asked:  # the form is whole when it is sent again, too
        assert path == "/v1/emotion:batch?language=de&top_k=1"
        head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
        parts = email.message_from_bytes(head + content, policy=email.policy.HTTP).iter_parts()
        sent = [(part.get_filename(), part.get_payload(decode=True)) for part in parts]
        assert [content for _, content in sent] == [content for _, content in named]
        assert all(f'name="file"; filename="{name}"'.encode() in content for name, _ in named)


def test_several_recordings_have_as_many_answers(server):
    server.replies = [(200, b'{"items": []}', {})]
    with Client(server.url) as client, pytest.raises(ResourceError, match="sent 1 recordings and answered 0"):
        client.predict_batch({"a": b""})


@pytest.mark.parametrize(("argument", "variable", "sent"), [
    ("k1", None, "Bearer k1"), (None, "k2\n", "Bearer k2"), ("k1", "k2", "Bearer k1"), ("", "k2", None),
])  # fmt: skip
def test_key(server, monkeypatch, argument, variable, sent):
    if variable is not None:
        monkeypatch.setenv("LAKD_API_KEY", variable)
    ask(server, OK, api_key=argument)
    assert server.asked[0][1].get("Authorization") == sent


@pytest.mark.parametrize(("key", "words"), [(None, "asks for a key.*set LAKD_API_KEY"), ("k", "refuses the key")])
def test_no_or_wrong_key(server, key, words):
    with pytest.raises(ResourceError, match=words) as caught:
        ask(server, (401, b'{"error": "a key is needed"}', {}), api_key=key)
    assert "401: a key is needed" in str(caught.value)


@pytest.mark.parametrize("status", [413, 415, 422])
def test_refusal(server, status):
    with pytest.raises(DataError, match="too odd"):
        ask(server, (status, b'{"error": "too odd"}', {}))
    assert len(server.asked) == 1


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (200, b"{}"), (500, b"odd"), (404, b'{"error": "?"}')])
def test_other_answers(server, status, body):
    with pytest.raises(ResourceError, match=str(status)):
        ask(server, (status, body, {}))
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("header", ["0", "0.01", "-1"])
def test_a_busy_endpoint_is_asked_again(server, status, header):
    busy = (status, b"busy", {"Retry-After": header})
    assert ask(server, busy, busy, OK).emotion == "anger"
    assert [content for _, _, content in server.asked] == [b"recording"] * 3


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "Fri, 31 Dec 2027 23:59:59 GMT"}])
def test_a_busy_endpoint_that_names_no_seconds_is_asked_again(server, headers):
    assert ask(server, (503, b"busy", headers), OK).emotion == "anger"


def test_a_busy_endpoint_is_not_waited_for_longer_than_the_timeout(server):
    with pytest.raises(ResourceError, match=r"answered 429: busy; it was asked again for 5 s"):
        ask(server, (429, b"busy", {"Retry-After": "3600"}), timeout_s=5)
    assert len(server.asked) == 1


def test_a_connection_that_breaks_is_made_again(server):
    assert ask(server, BROKEN, BROKEN, OK).emotion == "anger"
    with pytest.raises(ResourceError, match="no answer"):
        ask(server, BROKEN)
    assert len(server.asked) == 6


def test_nobody_there(server):
    port = server.server_port
    server.server_close()
    with pytest.raises(ResourceError, match="is it running"), Client(f"http://127.0.0.1:{port}") as client:
        client.model_info()


def test_it_loads_neither_ray_nor_torch():
    code = "import sys, lakd_ray.serve.client; print({'ray', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
