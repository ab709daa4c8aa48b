"""Floods against a real endpoint of Ray Serve: memory stays level, and honest requests are answered."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning"),
]

HEAD = b"POST /v1/emotion HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: audio/wav\r\n"
MAX_GROWTH_MB = 250  # the floods send 540 MB
MAX_REMAINING_MB = 60


def memory_mb(root: psutil.Process) -> dict[str, float]:
    """Return the memory of Serve's proxy and of the ingress, without the object store, which they share."""
    found = {}
    for process in root.children(recursive=True):
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            for role in ("ProxyActor", "Ingress"):
                if role in words:
                    memory = process.memory_info()
                    found[role] = (memory.rss - memory.shared) / 1e6
    return found


def test_floods_do_not_grow_the_endpoint(endpoint, recording):
    url, process = endpoint(max_upload_mb=10, proxy={"header_timeout_s": 3.0})
    root, clip = psutil.Process(process.pid), recording(1.0)

    def predict() -> float:
        start = time.monotonic()
        response = httpx.post(f"{url}/v1/emotion", content=clip, headers={"Content-Type": "audio/wav"}, timeout=60)
        assert response.status_code == 200
        return time.monotonic() - start

    for _ in range(20):
        predict()
    before, peak = memory_mb(root), dict.fromkeys(("ProxyActor", "Ingress"), 0.0)
    assert set(before) == set(peak)
    with ExitStack() as stack:
        address = (urlsplit(url).hostname, urlsplit(url).port)

        def open_connection(content: bytes) -> socket.socket:
            connection = stack.enter_context(socket.create_connection(address, timeout=5))
            connection.sendall(content)
            return connection

        idle = [open_connection(b"" if index % 2 else HEAD) for index in range(300)]
        for _ in range(40):  # more than the ingress accepts at the same time
            open_connection(HEAD + b"Content-Length: 100000\r\n\r\nRIFF")
        floods = [threading.Thread(target=flood_body, args=(open_connection(HEAD),)) for _ in range(4)]
        floods.append(threading.Thread(target=flood_stream, args=(url.replace("http", "ws"),)))
        for thread in floods:
            thread.start()
        latencies = []
        while any(thread.is_alive() for thread in floods) or len(latencies) < 20:
            latencies.append(predict())
            peak = {role: max(peak[role], size) for role, size in memory_mb(root).items()}
        for connection in idle:
            connection.settimeout(60)
            with suppress(ConnectionError):
                while connection.recv(4096):
                    pass
    assert {role: size for role, size in peak.items() if size > before[role] + MAX_GROWTH_MB} == {}
    deadline = time.monotonic() + 60
    while left := {role: size for role, size in memory_mb(root).items() if size > before[role] + MAX_REMAINING_MB}:
        assert time.monotonic() < deadline, (before, left)
        predict()
    assert np.quantile(latencies, 0.9) < 5


def flood_body(connection: socket.socket) -> None:
    """Send a body of up to 60 MB in chunks."""
    with suppress(OSError):
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(900):
            connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")


def flood_stream(url: str) -> None:
    """Send 20 MB of samples to a stream, which is slowed down."""

    def read(messages: Iterator[object]) -> None:
        with suppress(ConnectionClosed):
            for _ in messages:
                pass

    with suppress(ConnectionClosed), connect(f"{url}/v1/stream?rate=192000&hop_s=60", max_size=None) as stream:
        threading.Thread(target=read, args=(iter(stream),), daemon=True).start()
        for _ in range(20):
            stream.send(bytes(1_000_000))
