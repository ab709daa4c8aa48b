"""Protocols of uvicorn with limits on the number of connections, their headers and their idle time.

uvicorn waits for a request without a deadline and collects headers without a limit. Here a connection without a
complete request is closed after `header_timeout_s`, headers and trailers are limited to `MAX_HEADER_BYTES`, and at
the maximum number of connections, the one that has been without a request for longest makes room for a new one.
"""

import asyncio
from collections import Counter
from functools import partial
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from lakd_ray.config.serve import ProxyLimits
from lakd_ray.serve.clients import subscriber_network
from lakd_ray.serve.proxy.errors import render_raw_error
from lakd_ray.serve.rate_limit import RateLimit

MAX_HEADER_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 4 << 20  # of a stream; above the application's own limit, so that its error message is sent
# Every request, frame and chunk costs the event loop time, whatever its size: without these limits, a client that sends
# empty ones holds up all other clients. A recorder sends up to 375 messages per second (48 kHz, blocks of 128 samples).
MAX_PIPELINED_REQUESTS = 16
MIN_CHUNK_BYTES, CHUNKS_BURST = 64, 1000
MAX_FRAMES_PER_S, FRAMES_BURST = 1000, 500
_PART_BYTES = 4096
WRITE_TIMEOUT_S = 30.0  # for a client that does not read its response


def install(limits: ProxyLimits) -> None:
    """Let the servers that uvicorn starts in this process from now on use the bounded protocols."""
    http, websocket = create_protocols(limits)
    # uvicorn's tables of protocols take import strings and classes; Serve starts it with the entries `auto`
    uvicorn.config.HTTP_PROTOCOLS["auto"] = http
    uvicorn.config.WS_PROTOCOLS["auto"] = websocket


def create_protocols(limits: ProxyLimits) -> tuple[Any, Any]:
    """Return the values of uvicorn's options `http` and `ws` for a server with these limits."""
    table = ConnectionTable(limits)
    return partial(BoundedHttpProtocol, table), partial(BoundedWebSocketProtocol, table)


class ConnectionTable:
    """The open connections of a server, by client address, and those without a request, oldest first."""

    def __init__(self, limits: ProxyLimits):
        self.limits = limits
        self._addresses: dict[asyncio.Transport, str] = {}
        self._count_of_address: Counter[str] = Counter()
        self._waiting: dict[asyncio.Transport, None] = {}

    def admit(self, transport: asyncio.Transport) -> bool:
        """Add a connection if there is room for it, or if one without a request can be closed instead."""
        address = subscriber_network(str((transport.get_extra_info("peername") or ("",))[0]))
        if self._count_of_address[address] >= self.limits.max_client_connections and not self._evict(address):
            return False
        if len(self._addresses) >= self.limits.max_connections and not self._evict():
            return False
        self._addresses[transport] = address
        self._count_of_address[address] += 1
        return True

    def set_waiting(self, transport: asyncio.Transport, waiting: bool) -> None:
        """Record whether a connection is without a complete request."""
        self._waiting.pop(transport, None)
        if waiting and transport in self._addresses:
            self._waiting[transport] = None

    def remove(self, transport: asyncio.Transport) -> None:
        """Remove a connection that is closed."""
        self._waiting.pop(transport, None)
        address = self._addresses.pop(transport, None)
        if address is not None:
            self._count_of_address -= Counter([address])  # drops the addresses without connections

    def _evict(self, address: str | None = None) -> bool:
        """Close the connection that has waited longest for a request, of one client or of all."""
        for transport in self._waiting:
            if address is None or self._addresses[transport] == address:
                transport.abort()
                self.remove(transport)
                return True
        return False


class _BoundedWriting(asyncio.Protocol):
    """Aborts a connection whose client does not read; a base class beside a protocol of uvicorn."""

    transport: asyncio.Transport
    _write_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """Start the deadline for a client that does not read."""
        super().pause_writing()
        self._write_timer = asyncio.get_running_loop().call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """End the deadline for a client that does not read."""
        super().resume_writing()
        self._cancel_write_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the deadline of a connection that is closed."""
        self._cancel_write_timer()
        super().connection_lost(exc)

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


class BoundedHttpProtocol(_BoundedWriting, HttpToolsProtocol):
    """An HTTP connection with a deadline for each request's headers, and limits on their size and on writing."""

    def __init__(self, table: ConnectionTable, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._table = table
        self._bytes_without_progress = 0
        self._chunks = self._body_bytes = 0
        self._is_waiting = False  # without a complete request
        self._has_begun = False  # the headers of a request have arrived in part
        self._request_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Admit the connection, and wait for its first request."""
        super().connection_made(transport)
        if self._table.admit(transport):
            self._wait_for_request()
            self._start_request_timer()
        else:
            self._reject(503, "the endpoint has too many connections: try again after a second")

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the table."""
        self._table.remove(self.transport)
        self._cancel_request_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; reject headers, trailers and chunk extensions that exceed the limit."""
        if self.transport.is_closing():
            return
        self._bytes_without_progress += len(data)
        if self._is_waiting and self._request_timer is None:
            self._start_request_timer()
        super().data_received(data)
        if self._bytes_without_progress > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._reject(431, f"the headers are larger than the limit of {MAX_HEADER_BYTES // 1024} KB: send fewer")

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        super().on_message_begin()
        self._has_begun = True

    def on_headers_complete(self) -> None:
        """End the deadline of the request's headers; close a connection with too many requests."""
        if self.transport.is_closing():
            return
        if len(self.pipeline) >= MAX_PIPELINED_REQUESTS:
            self.transport.close()
            return
        self._bytes_without_progress, self._is_waiting, self._has_begun = 0, False, False
        self._chunks = self._body_bytes = 0
        self._cancel_request_timer()
        self._table.set_waiting(self.transport, False)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body; reject one that arrives in tiny chunks."""
        if self.transport.is_closing():
            return
        self._bytes_without_progress = 0
        self._chunks += 1
        self._body_bytes += len(body)
        if self._body_bytes < MIN_CHUNK_BYTES * (self._chunks - CHUNKS_BURST):
            self._reject(400, f"the chunks of the body are smaller than {MIN_CHUNK_BYTES} bytes: send larger ones")
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._bytes_without_progress = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start to wait for the next request; uvicorn closes the connection if it stays idle."""
        super().on_response_complete()
        if self.cycle.response_complete:  # otherwise the client has sent the next request already
            self._wait_for_request()
            if self.cycle.more_body:  # a rejected upload, of which the rest is read and dropped for a while
                self._start_request_timer()

    def send_400_response(self, msg: str) -> None:
        """Reject bytes that are not HTTP."""
        self._reject(400, f"{msg.rstrip('.')}: send HTTP/1.1")

    def _wait_for_request(self) -> None:
        self._is_waiting = True
        self._table.set_waiting(self.transport, True)

    def _start_request_timer(self) -> None:
        self._cancel_request_timer()
        self._request_timer = self.loop.call_later(self._table.limits.header_timeout_s, self._on_request_timeout)

    def _on_request_timeout(self) -> None:
        if self._has_begun:
            timeout_s = self._table.limits.header_timeout_s
            self._reject(408, f"the headers of the request were not complete after {timeout_s:g} s: send it again")
        else:
            self.transport.abort()

    def _cancel_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _reject(self, status: int, message: str) -> None:
        """Send an error and close the connection, unless a response is on its way."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(render_raw_error(status, message))
        self.transport.close()


class BoundedWebSocketProtocol(_BoundedWriting, WebSocketsSansIOProtocol):
    """A stream's connection without compression, with limits on the size and the rate of messages and on writing."""

    def __init__(self, table: ConnectionTable, config: uvicorn.Config, *args: Any, **options: Any):
        config.ws_max_size = MAX_MESSAGE_BYTES
        # Otherwise 20 kB of a client inflate to 20 MB in one turn of the event loop, for which all others wait.
        config.ws_per_message_deflate = False
        super().__init__(config, *args, **options)
        self._table = table
        self._unparsed = bytearray()
        self._rate = RateLimit(MAX_FRAMES_PER_S, FRAMES_BURST)
        self._parse_timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection, which `BoundedHttpProtocol` added, from the table."""
        self._table.remove(self.transport)
        if self._parse_timer is not None:
            self._parse_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; a client that sends more frames than the limit is read later."""
        self._unparsed += data
        if self._parse_timer is None:
            self._parse()
        else:  # uvicorn has resumed reading for its own reasons
            self.transport.pause_reading()

    def handle_events(self) -> None:
        """Count the frames and handle them."""
        self._rate.add(len(self.conn.events))
        super().handle_events()

    def _parse(self) -> None:
        self._parse_timer = None
        while self._unparsed and not self.transport.is_closing():
            wait_s = self._rate.wait_s()
            if wait_s > 0:
                self.transport.pause_reading()
                self._parse_timer = self.loop.call_later(wait_s, self._parse)
                return
            part = bytes(self._unparsed[:_PART_BYTES])
            del self._unparsed[:_PART_BYTES]
            super().data_received(part)
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()
