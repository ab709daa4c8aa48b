"""The middleware of the proxy in front of applications that behave as Serve does, with real sockets."""

import asyncio
import importlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send
from support.local_endpoint import running_server
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect

from lakd_ray.config.serve import ProxyLimits
from lakd_ray.serve.proxy.backpressure import WINDOW_BYTES, CreditMiddleware, message_bytes
from lakd_ray.serve.proxy.connections import BoundedHttpProtocol, BoundedWebSocketProtocol
from lakd_ray.serve.proxy.middleware import ProxyMiddleware, environment


class Forwarder:
    """A proxy that reads ahead without a limit, as Serve's does, in front of an application."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = CreditMiddleware(app)
        self.bytes_ahead = self.max_bytes_ahead = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        queue: asyncio.Queue[Message] = asyncio.Queue()

        async def read_ahead() -> None:
            while True:
                message = await receive()
                self.bytes_ahead += message_bytes(message)
                self.max_bytes_ahead = max(self.max_bytes_ahead, self.bytes_ahead)
                queue.put_nowait(message)

        async def receive_from_queue() -> Message:
            message = await queue.get()
            self.bytes_ahead -= message_bytes(message)
            return message

        task = asyncio.create_task(read_ahead())
        try:
            await self._app(scope, receive_from_queue, send)
        finally:
            task.cancel()


def serving_text(status: int, text: str = "internals of Serve") -> Callable[..., Any]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(text, status)({**scope, "type": "http"}, receive, send)

    return app


@pytest.mark.parametrize("status", [404, 408, 413, 429, 500, 503])
def test_errors_of_serve_are_json(status):
    with running_server(serving_text(status), ProxyLimits()) as url:
        response = httpx.post(url, content=b"a")
        assert response.status_code == status
        assert response.headers["content-type"] == "application/json"
        assert list(response.json()) == ["error"]
        assert ("retry-after" in response.headers) == (status in (429, 503))
        assert ("Serve" in response.json()["error"]) == (status == 503)
        with pytest.raises(InvalidStatus) as refused, connect(url.replace("http", "ws")):
            pass
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body)["error"]


def test_other_text_is_unchanged():
    with running_server(serving_text(200, "success"), ProxyLimits()) as url:
        assert httpx.get(url).text == "success"


def test_no_response_is_an_error():
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/raises":
            raise RuntimeError("secret")

    with running_server(silent, ProxyLimits()) as url:
        for path in ("/", "/raises"):
            response = httpx.get(url + path)
            assert response.status_code == 500
            assert response.json() == {"error": "internal error; the log of the server has the details"}


def test_clients_cannot_set_the_deadline():
    async def headers(scope: Scope, receive: Receive, send: Send) -> None:
        pairs = [(name.decode(), value.decode()) for name, value in scope["headers"] if name.startswith(b"x-")]
        await PlainTextResponse(json.dumps(pairs))(scope, receive, send)

    sent = {"X-Request-Timeout-Seconds": "0", "X-Request-Disconnect-Disabled": "?1", "X-Lakd-Window": "1", "X-A": "b"}
    with running_server(headers, ProxyLimits(deadline_s=5)) as url:
        found = httpx.get(url, headers=sent).json()
    assert sorted(map(tuple, found)) == [
        ("x-a", "b"), ("x-lakd-window", str(WINDOW_BYTES)), ("x-request-timeout-seconds", "6"),
    ]  # fmt: skip


def test_a_body_is_read_as_fast_as_the_application_takes_it():
    may_read = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        await asyncio.to_thread(may_read.wait)
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await PlainTextResponse(str(size))(scope, receive, send)

    def content() -> Iterator[bytes]:
        for _ in range(320):
            yield bytes(1 << 16)

    forwarder = Forwarder(app)
    with running_server(forwarder, ProxyLimits()) as url:
        answers: list[str] = []
        client = threading.Thread(target=lambda: answers.append(httpx.post(url, content=content(), timeout=60).text))
        client.start()
        wait_until_stable(lambda: forwarder.max_bytes_ahead)
        assert WINDOW_BYTES <= forwarder.max_bytes_ahead < 2 * WINDOW_BYTES
        may_read.set()
        client.join()
    assert answers == [str(320 << 16)]
    assert forwarder.max_bytes_ahead < 2 * WINDOW_BYTES


def test_slow_uploads_do_not_reach_the_application():
    requests = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        requests.append(scope["path"])
        message = {"more_body": True}
        while message.get("more_body", False):
            message = await receive()
        if message["type"] == "http.request":
            await PlainTextResponse("done")(scope, receive, send)

    def stalling(size: int) -> Iterator[bytes]:
        yield bytes(size)
        release.wait()

    release = threading.Event()
    with running_server(app, ProxyLimits(deadline_s=0.1, header_timeout_s=0.3)) as url, ThreadPoolExecutor() as pool:
        start = time.monotonic()
        posts = [pool.submit(httpx.post, url + path, content=stalling(n)) for path, n in (("/a", 100), ("/b", 600_000))]
        assert httpx.post(url + "/c", content=b"a").text == "done"
        wait_until(lambda: "/b" in requests and time.monotonic() - start > 1.5)
        release.set()
        responses = [post.result() for post in posts]
    assert [response.status_code for response in responses] == [408, 408]
    assert "longer than the limit" in responses[1].json()["error"]
    assert sorted(requests) == ["/b", "/c"]  # /a ended in the proxy


def test_a_stream_is_read_as_fast_as_the_application_takes_it():
    may_read = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.to_thread(may_read.wait)
        size = 0
        while size < 30_000_000:
            size += message_bytes(await receive())
        await send({"type": "websocket.send", "text": str(size)})
        await send({"type": "websocket.close", "code": 1000})

    forwarder = Forwarder(app)
    with (
        running_server(forwarder, ProxyLimits()) as url,
        connect(url.replace("http", "ws"), max_size=None, compression=None) as stream,
    ):
        sender = threading.Thread(target=lambda: [stream.send(bytes(500_000)) for _ in range(60)])
        sender.start()
        wait_until_stable(lambda: forwarder.max_bytes_ahead)
        assert WINDOW_BYTES <= forwarder.max_bytes_ahead <= 2 * WINDOW_BYTES
        assert sender.is_alive()
        may_read.set()
        assert stream.recv() == "30000000"
        sender.join()
    assert forwarder.max_bytes_ahead <= 2 * WINDOW_BYTES


def test_messages_of_streams_are_limited():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    with running_server(app, ProxyLimits()) as url, connect(url.replace("http", "ws")) as stream:
        with pytest.raises(ConnectionClosed):
            stream.send(bytes(20_000_000))
            stream.recv()
        assert stream.close_code in (1009, 1006)  # a reset may overtake 1009, as the rest is not read


def test_messages_of_streams_cannot_be_compressed():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": str(message_bytes(await receive()))})
        await send({"type": "websocket.close", "code": 1000})

    offered = [ClientPerMessageDeflateFactory()]
    with running_server(app, ProxyLimits()) as url, connect(url.replace("http", "ws"), extensions=offered) as stream:
        assert "Sec-WebSocket-Extensions" in stream.request.headers
        assert "Sec-WebSocket-Extensions" not in stream.response.headers
        stream.send(bytes(1_000_000))
        assert stream.recv() == "1000000"


def test_environment_installs_the_limits_in_a_proxy(monkeypatch):
    variables = environment(ProxyLimits(max_connections=7))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for table in (uvicorn.config.HTTP_PROTOCOLS, uvicorn.config.WS_PROTOCOLS):
        monkeypatch.setitem(table, "auto", "")
    module, _, function = variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    (middleware,) = getattr(importlib.import_module(module), function)()
    assert middleware.cls is ProxyMiddleware
    config = uvicorn.Config(middleware.cls(Forwarder, **middleware.kwargs))
    config.load()
    assert config.http_protocol_class.func is BoundedHttpProtocol
    assert config.ws_protocol_class.func is BoundedWebSocketProtocol
    assert config.http_protocol_class.args[0].limits.max_connections == 7


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_until_stable(value: Callable[[], int]) -> None:
    """Wait until a growing value has not changed for a while."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 0.3:
        if value() != last or last <= 0:
            last, since = value(), time.monotonic()
        time.sleep(0.02)
