"""The JSON errors of the proxy, in the form of the application's."""

import json
from http import HTTPStatus

_HEADERS = {408: {"connection": "close"}, 429: {"retry-after": "1"}, 503: {"retry-after": "1"}}

Headers = list[tuple[bytes, bytes]]


def render_error(status: int, message: str) -> tuple[Headers, bytes]:
    """Return headers and body of an error with an HTTP status and a message."""
    body = json.dumps({"error": message}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **_HEADERS.get(status, {})}
    return [(name.encode(), value.encode()) for name, value in headers.items()], body


def render_raw_error(status: int, message: str) -> bytes:
    """Return an error as the bytes of an HTTP/1.1 response that ends the connection."""
    headers, body = render_error(status, message)
    fields = dict(headers) | {b"connection": b"close"}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode(), *(b": ".join(item) for item in fields.items())]
    return b"\r\n".join([*lines, b"", body])
