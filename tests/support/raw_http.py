"""Bytes that are not quite HTTP, and what a server may respond to them."""

import socket
from contextlib import suppress
from typing import NamedTuple

TIMEOUT_S = 25.0
HEAD = b"POST /v1/emotion HTTP/1.1\r\nHost: localhost\r\nContent-Type: audio/wav\r\n"


class RawRequest(NamedTuple):
    """The bytes of a request, and whether the server may close the connection without a response."""

    content: bytes
    may_close: bool = False

    def accepts(self, status: int | None) -> bool:
        """Return whether the status is an error of the client, or the connection was closed where that is allowed."""
        return self.may_close if status is None else status < 500


RAW = [
    RawRequest(HEAD + b"Content-Length: 100000\r\n\r\nRIFF", may_close=True),  # cut off
    RawRequest(HEAD + b"Content-Length: 3\r\n\r\nRIFFRIFFRIFF"),  # more than declared
    RawRequest(HEAD + b"Content-Length: -1\r\n\r\n"),
    RawRequest(HEAD + b"Content-Length: 99999999999999999999\r\n\r\nRIFF"),
    RawRequest(HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nRIFFxx"),
    RawRequest(HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\nRIFF\r\n0\r\n\r\n"),
    RawRequest(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nRIFF\r\n", may_close=True),  # the last chunk is missing
    RawRequest(HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n4\r\nRIFF\r\n0\r\n\r\n"),
    RawRequest(HEAD + b"X: " + b"y" * 200_000 + b"\r\n\r\n", may_close=True),  # rejected while it is sent
    RawRequest(HEAD + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n", may_close=True),
    RawRequest(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00"),
    RawRequest(HEAD + b"Host: evil.example\r\nContent-Length: 4\r\n\r\nRIFF"),
    RawRequest(b"GET / HTTP/9.9\r\n\r\n"),
    RawRequest(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),  # TLS
    RawRequest(b"\x00" * 1000),
    RawRequest(b"POST " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n", may_close=True),
    RawRequest(
        b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: x\r\n\r\n"
    ),
]


def send_raw(address: tuple[str, int], request: RawRequest) -> int | None:
    """Send a request and return the status of the response; None if the server closes the connection without one.

    Raises:
        TimeoutError: the server neither responds nor closes the connection.
    """
    with socket.create_connection(address, timeout=TIMEOUT_S) as line:
        try:
            line.sendall(request.content)
            if request.may_close:  # uvicorn takes the end of the input for the end of the connection
                with suppress(OSError):  # the server may have closed it already
                    line.shutdown(socket.SHUT_WR)
            response = line.recv(4096)
        except ConnectionError:
            return None
    if not response:
        return None
    assert response.startswith(b"HTTP/1."), response[:200]
    return int(response.split(b" ", 2)[1])
