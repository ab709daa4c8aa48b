"""The client: what becomes of answers, refusals and silence."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lakd_ray.errors import DataError, ResourceError
from lakd_ray.serve.client import Client

ANSWER = {"emotion": "anger", "probabilities": {"anger": 1.0}, "language": "de", "duration_s": 1.5, "model": "student"}


class Handler(BaseHTTPRequestHandler):
    """Answers what the server was told to, and keeps the request."""

    def do_POST(self) -> None:
        status, body = self.server.reply  # type: ignore[attr-defined] # set by the fixture
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked = (self.path, content)  # type: ignore[attr-defined] # read by the tests
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: HTTPServer, status: int, body: bytes, language: str | None = "de"):
    server.reply = (status, body)  # type: ignore[attr-defined] # read by the handler
    with Client(f"http://127.0.0.1:{server.server_port}") as client:
        return client.emotion(b"recording", language)


def test_answer(server):
    answer = ask(server, 200, json.dumps(ANSWER).encode())
    assert answer.model_dump() == ANSWER | {"language_probability": None}
    assert server.asked == ("/v1/emotion?language=de", b"recording")


def test_no_language(server):
    ask(server, 200, json.dumps(ANSWER).encode(), language=None)
    assert server.asked[0] == "/v1/emotion"


@pytest.mark.parametrize("status", [413, 415, 422])
def test_refusal(server, status):
    with pytest.raises(DataError, match="too odd"):
        ask(server, status, b'{"error": "too odd"}')


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (200, b"{}"), (429, b"busy"), (404, b'{"error": "?"}')])
def test_other_answers(server, status, body):
    with pytest.raises(ResourceError, match=str(status)):
        ask(server, status, body)


def test_nobody_there(server):
    port = server.server_port
    server.server_close()
    with pytest.raises(ResourceError, match="is it running"), Client(f"http://127.0.0.1:{port}") as client:
        client.model()
