"""Orderly end of the endpoint: responses to the requests in progress, and 503 for new ones."""

import asyncio
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lakd_ray.serve.messages import ErrorResponse

RETRY_AFTER_S = 5
_POLL_S = 0.05


class Drain:
    """The requests and streams in progress in this process, and whether new ones are accepted."""

    def __init__(self) -> None:
        self.in_progress = 0
        self.is_draining = False

    async def run(self, timeout_s: float) -> int:
        """Reject new requests, wait for those in progress, and return how many are left after `timeout_s`."""
        self.is_draining = True
        deadline = time.monotonic() + timeout_s
        while self.in_progress and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        return self.in_progress


class DrainMiddleware:
    """Middleware that counts requests in progress, and rejects new ones with 503 while the endpoint drains.

    Args:
        app: the application.
        drain: the state that the middleware updates.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app, self._drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request or a stream."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif self._drain.is_draining:
            await _reject(scope, receive, send)
        else:
            self._drain.in_progress += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._drain.in_progress -= 1


async def _reject(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1013, "reason": "the endpoint is stopping: try again later"})
        return
    message = f"the endpoint is stopping: send the request again in {RETRY_AFTER_S} s"
    headers = {"Retry-After": str(RETRY_AFTER_S), "Connection": "close"}
    await JSONResponse(ErrorResponse(error=message).model_dump(), 503, headers)(scope, receive, send)
