"""Back-pressure makes Serve's proxy read ahead of the ingress by a window of bytes, not by all that is sent.

Serve itself forwards a body or the messages of a stream through queues without a limit. Here the proxy stops reading a
connection after `WINDOW_BYTES`, and the ingress returns credit for the bytes that it has taken, in messages of the
type `CREDIT` that the proxy removes from the response. The client is slowed down by TCP then.
"""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

WINDOW_BYTES = 1_000_000
CREDIT = "lakd.credit"
_WINDOW_HEADER = (
    b"x-lakd-window"  # the proxy sets it, so that the ingress returns credit only to a proxy that removes it
)


def message_bytes(message: Message) -> int:
    """Return the size of a message's content: a part of a body, or a message of a stream."""
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"")


class Window:
    """The bytes of one request or stream that the proxy may still read ahead of the ingress."""

    def __init__(self, size: int = WINDOW_BYTES):
        self._size = self._available = size
        self._has_room = asyncio.Event()
        self._has_room.set()

    def mark(self, scope: Scope) -> Scope:
        """Return the scope with the header that requests credit; a client's own header of this name is removed."""
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != _WINDOW_HEADER]
        return {**scope, "headers": [*headers, (_WINDOW_HEADER, str(self._size).encode())]}

    async def wait(self) -> None:
        """Wait until the window has room for a message."""
        await self._has_room.wait()

    def take(self, size: int) -> None:
        """Remove the bytes of a message that is forwarded."""
        self._add(-size)

    def return_credit(self, message: Message) -> None:
        """Add the bytes of a message of the type `CREDIT` to the window."""
        self._add(message["bytes"])

    def _add(self, size: int) -> None:
        self._available += size
        if self._available > 0:
            self._has_room.set()
        else:
            self._has_room.clear()


class CreditMiddleware:
    """Middleware of the ingress that returns credit to the proxy for the bytes that the application has received."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request or a stream on, and return credit if the proxy has requested it."""
        window = next((int(value) for name, value in scope.get("headers", ()) if name == _WINDOW_HEADER), None)
        if window is None:
            await self._app(scope, receive, send)
            return
        owed = 0

        async def receive_and_credit() -> Message:
            nonlocal owed
            message = await receive()
            owed += message_bytes(message)
            if 2 * owed >= window:  # half a window at a time: the other half is on its way meanwhile
                with suppress(RuntimeError):  # Serve's queue is closed after the response
                    await send({"type": CREDIT, "bytes": owed})
                owed = 0
            return message

        await self._app(scope, receive_and_credit, send)
