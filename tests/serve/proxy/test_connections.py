"""Limits of connections, with real sockets and a real server."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from support.local_endpoint import running_server
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from lakd_ray.config.serve import ProxyLimits
from lakd_ray.serve.proxy import connections

HEAD = b"POST /v1/emotion HTTP/1.1\r\nHost: a\r\nContent-Type: audio/wav\r\n"


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond without reading the body, with 200 to GET and 413 to POST."""
    await PlainTextResponse("no", 200 if scope["method"] == "GET" else 413)(scope, receive, send)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with the size of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await PlainTextResponse(str(size))(scope, receive, send)


@contextmanager
def server(app: Any = echo, **limits: Any) -> Iterator[tuple[str, Any]]:
    with running_server(app, ProxyLimits(**limits)) as url:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        sockets: list[socket.socket] = []

        def connect(data: bytes = b"") -> socket.socket:
            sockets.append(socket.create_connection(address, timeout=20))
            sockets[-1].sendall(data)
            return sockets[-1]

        try:
            yield url, connect
        finally:
            for each in sockets:
                each.close()


def received(connection: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    content = b""
    try:
        while part := connection.recv(65536):
            content += part
    except ConnectionResetError:
        pass
    return content


def error_of(response: bytes) -> str:
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    return str(json.loads(body)["error"])


def test_connections_without_a_complete_request_are_closed():
    with server(header_timeout_s=0.3) as (url, connect):
        start = time.monotonic()
        idle = [connect() for _ in range(20)]
        slow = [connect(b"POST / HTTP/1.1\r\nHost: a\r\nX-A: b") for _ in range(20)]
        for each in slow:
            each.sendall(b"c")  # more bytes do not extend the deadline
        assert [received(each) for each in idle] == [b""] * 20
        responses = [received(each) for each in slow]
        assert time.monotonic() - start < 10
        assert all(response.startswith(b"HTTP/1.1 408 ") for response in responses)
        assert "not complete after 0.3 s" in error_of(responses[0])
        assert httpx.get(url).status_code == 200


def test_the_deadline_covers_the_next_request_of_a_connection():
    with server(header_timeout_s=0.3) as (_, connect):
        request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        connection = connect(request)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(0.5)  # an idle connection stays open between two requests
        connection.sendall(request)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"\r\n")
        assert received(connection) == b""
        connection = connect(request)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET / HT")
        assert b" 408 " in received(connection)


def test_the_oldest_connection_without_a_request_makes_room():
    with server(max_connections=8) as (url, connect):
        idle = [connect() for _ in range(8)]
        assert httpx.get(url).status_code == 200
        assert received(idle[0]) == b""
        running = [connect(HEAD + b"Content-Length: 10\r\n\r\n") for _ in range(8)]
        for each in idle[1:]:
            assert received(each) == b""
        response = received(connect(HEAD))
        assert response.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in response
        assert "too many connections" in error_of(response)
        running[0].close()
        assert httpx.get(url).status_code == 200


def test_one_client_has_its_own_limit():
    with server(max_client_connections=2) as (_, connect):
        running = [connect(HEAD + b"Content-Length: 2\r\n\r\n") for _ in range(2)]
        assert received(connect(HEAD)).startswith(b"HTTP/1.1 503 ")
        running[0].sendall(b"ab")
        assert b"\r\n\r\n2" in running[0].recv(65536)


@pytest.mark.parametrize(
    "start",
    [b"GET /", HEAD + b"X-A: ", HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-A: "],
    ids=["path", "header", "trailer"],
)
def test_headers_are_limited(start):
    with server() as (_, connect):
        connection, sent = connect(start), 0
        try:
            while sent < 10_000_000:
                connection.sendall(b"b" * 65536)
                sent += 65536
        except OSError:
            pass
        assert sent < 8_000_000  # the buffers of the sockets


def test_large_headers_are_rejected_with_json():
    with server() as (_, connect):
        response = received(connect(HEAD + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(66))))
        assert response.startswith(b"HTTP/1.1 431 ")
        assert "64 KB" in error_of(response)
        assert "HTTP/1.1" in error_of(received(connect(b"\x00\x01\r\n\r\n")))


def test_a_rejected_upload_is_dropped_and_then_cut_off():
    with server(refuse, header_timeout_s=0.5) as (url, connect):
        connection = connect(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        with pytest.raises(OSError):  # reset or broken pipe
            while True:
                connection.sendall(bytes(65536))
                time.sleep(0.01)
        with httpx.Client() as client:  # a client that sends everything before it reads the response
            assert "larger than the limit" in client.post(url, content=bytes(3_000_000)).json()["error"]


def test_a_client_that_does_not_read_is_cut_off(monkeypatch):
    monkeypatch.setattr("lakd_ray.serve.proxy.connections.WRITE_TIMEOUT_S", 0.3)

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(bytes(30_000_000))(scope, receive, send)

    with server(flood) as (_, connect):
        connection = connect(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(1.0)
        assert len(received(connection)) < 30_000_000


def test_bodies_in_tiny_chunks_are_rejected():
    def body(size: int, chunks: int) -> bytes:
        return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n" % (size, bytes(size)) * chunks

    with server() as (_, connect):
        response = received(connect(body(1, connections.CHUNKS_BURST + 50)))
        assert response.startswith(b"HTTP/1.1 400 ")
        assert "smaller than 64 bytes" in error_of(response)
        for size, chunks in ((1, 500), (64, 3000)):
            accepted = connect(body(size, chunks) + b"0\r\n\r\n")
            assert accepted.recv(65536).endswith(str(size * chunks).encode())


def test_requests_that_do_not_wait_for_a_response_are_limited():
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with server(refuse) as (_, connect):
        few, responses = connect(10 * request), b""
        while responses.count(b"HTTP/1.1 200 OK") < 10:
            responses += few.recv(65536)
        assert received(connect(5000 * request)).count(b"HTTP/1.1 200 OK") < 50


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MASK = b"\x80\0\0\0\0"
PING, EMPTY_MESSAGE, START, CONTINUATION = (bytes([opcode]) + MASK for opcode in (0x89, 0x82, 0x02, 0x00))


@pytest.mark.parametrize("frames", [EMPTY_MESSAGE * 2000, PING * 2000, START + CONTINUATION * 2000])
def test_frames_of_streams_are_read_at_a_limited_rate(monkeypatch, frames):
    monkeypatch.setattr(connections, "MAX_FRAMES_PER_S", 2000)
    handled = []
    handle_events = WebSocketsSansIOProtocol.handle_events

    def count_frames(self: WebSocketsSansIOProtocol) -> None:
        handled.append(len(self.conn.events))
        handle_events(self)

    monkeypatch.setattr(WebSocketsSansIOProtocol, "handle_events", count_frames)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    with server(app) as (_, connect):
        connection = connect(HANDSHAKE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 101 ")
        start = time.monotonic()
        connection.sendall(frames)
        while sum(handled) < 2000:
            assert time.monotonic() < start + 20
            time.sleep(0.005)
        took = time.monotonic() - start
    assert took > (2000 - connections.FRAMES_BURST - 4096 / 6) / 2000  # 0.4 s
    assert max(handled) <= 4096 / 6 + 1
