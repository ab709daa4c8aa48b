"""Middleware inside Serve's proxy adds back-pressure and deadlines, and turns errors of the proxy into JSON.

Serve calls `create_middlewares` when a proxy starts, if RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it;
`environment` returns this variable and the limits for the proxies of an endpoint.
"""

import asyncio
import logging
import os
import time

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lakd_ray.config.serve import ProxyLimits
from lakd_ray.serve import allocator
from lakd_ray.serve.proxy import connections
from lakd_ray.serve.proxy.backpressure import CREDIT, Window, message_bytes
from lakd_ray.serve.proxy.errors import render_error

logger = logging.getLogger(__name__)

_LIMITS_VARIABLE = "LAKD_PROXY_LIMITS"
_TIMEOUT_HEADER = b"x-request-timeout-seconds"
# Serve takes these headers from any client: one lifts the deadline, one continues the work for a client that left
_RESERVED_HEADERS = frozenset({_TIMEOUT_HEADER, b"x-request-disconnect-disabled"})
START_BYTES = 512 * 1024
_GRACE_S = 1.0  # the application enforces the same deadline, with a better message, on the requests that reach it
_MESSAGES = {  # in place of Serve's, which name its internals, or are missing
    404: "no application is running at this path: see /docs for the API",
    408: "the request took longer than the limit of the endpoint: send it again, or a shorter recording",
    413: "the upload is larger than the limit of the endpoint: send less audio, or compress it",
    429: "too many requests are running and waiting: send the request again after a second",
    500: "internal error; the log of the server has the details",
}


def environment(limits: ProxyLimits) -> dict[str, str]:
    """Return the environment variables of Serve's controller that put these limits into its proxies."""
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:create_middlewares",
        _LIMITS_VARIABLE: limits.model_dump_json(),
    }


def create_middlewares() -> list[Middleware]:
    """Bound the connections and the memory of this proxy, and return its middleware; the environment has the limits."""
    limits = ProxyLimits.model_validate_json(os.environ.get(_LIMITS_VARIABLE, "{}"))
    connections.install(limits)
    allocator.return_large_blocks()
    return [Middleware(ProxyMiddleware, limits=limits)]


class ProxyMiddleware:
    """Middleware around Serve's proxy, for HTTP requests and streams."""

    def __init__(self, app: ASGIApp, limits: ProxyLimits):
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request or a stream on within the limits."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        window = Window()
        response = _Response(send, window, is_stream=scope["type"] == "websocket")
        declared = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"")
        if declared.isdigit() and int(declared[:20]) > self._limits.max_body_bytes:
            await response.send_error(413)
            return
        scope = window.mark(scope)
        scope["headers"] = [item for item in scope["headers"] if item[0].lower() not in _RESERVED_HEADERS]
        deadline_s = self._limits.deadline_s + _GRACE_S
        if scope["type"] == "http":
            scope["headers"].append((_TIMEOUT_HEADER, f"{deadline_s:g}".encode()))
        upload = _Upload(receive, window, self._limits)
        start = time.monotonic()
        try:
            if scope["type"] == "http":
                async with asyncio.timeout(deadline_s):
                    await upload.read_start()
            if not upload.is_disconnected:
                await self._app(scope, upload.receive, response.send)
        except TimeoutError:
            upload.is_stalled = True
        except Exception:  # any error of Serve becomes a response
            logger.exception("the proxy failed")
        if not response.started:  # Serve sends no response after an internal error, or if credit was sent before
            is_late = upload.is_stalled or time.monotonic() - start >= deadline_s
            await response.send_error(408 if is_late else 500)


class _Upload:
    """The messages of a client on their way to Serve.

    The start of a body is collected before Serve receives the request, so that slow clients take no place in its queue.
    """

    def __init__(self, receive: Receive, window: Window, limits: ProxyLimits):
        self._receive, self._window, self._limits = receive, window, limits
        self._start: Message | None = None
        self._is_body_open = False
        self.is_disconnected = self.is_stalled = False

    async def read_start(self) -> None:
        """Read the first `START_BYTES` of the body, or all of it."""
        parts: list[bytes] = []
        self._is_body_open = True
        while self._is_body_open and sum(map(len, parts)) < START_BYTES:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.is_disconnected = True
                return
            parts.append(message.get("body", b""))
            self._is_body_open = message.get("more_body", False)
        self._start = {"type": "http.request", "body": b"".join(parts), "more_body": self._is_body_open}

    async def receive(self) -> Message:
        """Return the next message as soon as the window has room; end a body that does not arrive."""
        await self._window.wait()
        message, self._start = self._start, None
        if message is None:
            try:
                async with asyncio.timeout(self._limits.header_timeout_s if self._is_body_open else None):
                    message = await self._receive()
            except TimeoutError:
                self.is_stalled = True
                message = {"type": "http.disconnect"}
            self._is_body_open = message.get("more_body", False)
        self._window.take(message_bytes(message))
        return message


class _Response:
    """The messages of a response on their way to the client; errors of Serve become JSON, credit is removed."""

    def __init__(self, send: Send, window: Window, *, is_stream: bool):
        self._send, self._window, self._is_stream = send, window, is_stream
        self._error: Message | None = None
        self._error_text = b""
        self.started = False

    async def send(self, message: Message) -> None:
        """Pass a message on, unless it is credit or part of an error of Serve."""
        if message["type"] == CREDIT:
            self._window.return_credit(message)
        elif message["type"] == "http.response.start" and self._is_error_of_serve(message):
            self._error, self.started = message, True
        elif self._error is not None:
            self._error_text += message.get("body", b"")
            if not message.get("more_body", False):
                await self.send_error(self._error["status"], self._error_text.decode(errors="replace"))
        else:
            self.started = True
            await self._send(message)

    def _is_error_of_serve(self, message: Message) -> bool:
        """Return whether a response is an error in plain text, which the application never sends."""
        content_type = dict(message.get("headers", ())).get(b"content-type", b"")
        return bool(message["status"] >= 400 and content_type.startswith(b"text/plain"))

    async def send_error(self, status: int, text: str = "") -> None:
        """Send a JSON error instead of Serve's; before a stream is accepted, in response to its handshake."""
        self.started = True
        headers, body = render_error(status, _MESSAGES.get(status, text))
        prefix = "websocket.http" if self._is_stream else "http"
        await self._send({"type": f"{prefix}.response.start", "status": status, "headers": headers})
        await self._send({"type": f"{prefix}.response.body", "body": body})
