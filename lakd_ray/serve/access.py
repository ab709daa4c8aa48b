"""Reject requests that a web page of a different site, or a machine that needs a key, sends to the endpoint.

A browser sends requests of any page to any address, also to an endpoint that listens on 127.0.0.1. Three headers that
pages cannot forge distinguish them:

- `Host` is the name in the URL. A page whose own domain name resolves to the endpoint's address (DNS rebinding) counts
  as same-origin for the browser, but its requests carry that name. Only known names are accepted.
- `Origin` is the origin of the page. Browsers send it with every POST and WebSocket; other clients do not.
- `Sec-Fetch-Site` is the relation of the page to the endpoint, also where there is no `Origin`.
"""

import re
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from lakd_ray.addresses import is_loopback, parse_ip
from lakd_ray.config import ServeConfig
from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.messages import ErrorResponse

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|(?:\*\.)?[\w.-]+)(?::([0-9]{1,5}))?", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_POLICY_VIOLATION = 1008  # RFC 6455

Authority = tuple[str, int | None]
"""Name and port; no port means the default one of the scheme."""


class AccessPolicy:
    """Decides from the headers and the address of a client whether the endpoint processes its requests.

    Args:
        config: the `serve` section.
        requires_key: whether the endpoint has API keys.
    """

    def __init__(self, config: ServeConfig, *, requires_key: bool):
        self._bound_host = config.host
        self._accepts_any_host = "*" in config.public_hosts
        self._public_hosts = tuple(filter(None, map(_parse_authority, config.public_hosts)))  # without "*"
        self._accepts_any_origin = "*" in config.allowed_origins
        self._allowed_origins = {_parse_origin(origin) for origin in config.allowed_origins if origin != "*"}
        self._is_open = requires_key or config.open_access

    def check(self, connection: HTTPConnection) -> None:
        """Reject a request or a stream.

        Raises:
            RequestError: 400 invalid Host, 421 unknown Host, 403 a page of a different origin, or a different machine
                while there are no API keys.
        """
        host = self._check_host(connection)
        self._check_origin(connection, host)
        client = parse_ip(connection.client.host) if connection.client else None
        if not self._is_open and client is not None and not client.is_loopback:
            raise RequestError(
                403,
                "this endpoint has no API keys and accepts only clients on its own machine: set serve.api_keys_file or "
                "LAKD_API_KEYS, or serve.open_access: true behind a gateway that authenticates its clients",
            )

    def _check_host(self, connection: HTTPConnection) -> Authority | None:
        """Return the authority that the request was sent to; None for HTTP/1.0, which has no Host."""
        headers = connection.headers.getlist("host")
        if not headers:
            return None
        authority = _parse_authority(headers[0])
        if authority is None or len(headers) > 1:
            raise RequestError(400, "the Host header is invalid: expected one name or address, with or without a port")
        name = authority[0]
        server = connection.scope.get("server") or ("", None)
        if not (
            self._accepts_any_host
            or is_loopback(name)
            or name in (_normalize(self._bound_host), _normalize(server[0]))
            or (parse_ip(name) is not None and _is_unspecified(self._bound_host))
            or any(_matches_name(name, public) for public in self._public_hosts)
        ):
            raise RequestError(
                421, f"the endpoint is not known as {name[:100]}: add this name to serve.public_hosts to accept it"
            )
        return authority

    def _check_origin(self, connection: HTTPConnection, host: Authority | None) -> None:
        headers = connection.headers
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is None:
            # a link to the page is a navigation, and a page cannot read the response
            is_navigation = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            is_safe = connection.scope.get("method", "GET") in ("GET", "HEAD")
            if site in ("same-origin", "none") or (is_safe and is_navigation):
                return
        elif self._is_allowed(origin, host) or (origin == "null" and site == "same-origin"):
            return
        page = "a page of a different site" if origin in (None, "null") else f"the page {origin[:100]}"
        raise RequestError(
            403,
            f"the request was sent by {page}: add its origin to serve.allowed_origins, or, if it is the page of this "
            "endpoint behind a gateway, its host name to serve.public_hosts",
        )

    def _is_allowed(self, origin: str, host: Authority | None) -> bool:
        """Return whether pages of an origin may use the endpoint: its own ones, and those of the settings."""
        if self._accepts_any_origin:
            return True
        parsed = _parse_origin(origin)
        if parsed is None:
            return False
        scheme, name, port = parsed
        same_origin = host is not None and (name, port) == (host[0], host[1] or _DEFAULT_PORTS.get(scheme))
        # a gateway may replace the Host header by the address of the endpoint
        return (
            parsed in self._allowed_origins
            or same_origin
            or any(
                _matches_name(name, public) and port == (public[1] or _DEFAULT_PORTS.get(scheme))
                for public in self._public_hosts
            )
        )


class AccessMiddleware:
    """Middleware that applies an `AccessPolicy` to all requests and streams.

    A stream is accepted before it is rejected, because browsers hide the reason of a failed handshake from a page.
    """

    def __init__(self, app: ASGIApp, policy: AccessPolicy):
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with the reason why it is rejected."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            self._policy.check(HTTPConnection(scope))
        except RequestError as error:
            body = ErrorResponse(error=error.message)
            if scope["type"] == "http":
                await JSONResponse(body.model_dump(), error.status)(scope, receive, send)
                return
            socket = WebSocket(scope, receive, send)
            try:
                await socket.accept()
                await socket.send_text(body.model_dump_json())
                await socket.close(_POLICY_VIOLATION)
            except (RuntimeError, WebSocketDisconnect):
                pass  # the client has closed it
            return
        await self._app(scope, receive, send)


def _parse_authority(text: str) -> Authority | None:
    match = _AUTHORITY.fullmatch(text.strip())
    if match is None:
        return None
    return _normalize(match[1]), None if match[2] is None else int(match[2])


def _parse_origin(text: str) -> tuple[str, str, int | None] | None:
    """Return scheme, name and port of an origin; None for `null` and for anything else that is not one."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        return None
    return parts.scheme, _normalize(parts.hostname), port or _DEFAULT_PORTS.get(parts.scheme)


def _normalize(host: str) -> str:
    """Return a name in lower case, and an address in its shortest form without brackets."""
    address = parse_ip(host)
    return str(address) if address is not None else host.lower().removesuffix(".")


def _is_unspecified(host: str) -> bool:
    address = parse_ip(host)
    return address is not None and address.is_unspecified


def _matches_name(name: str, public: Authority) -> bool:
    """Return whether a name is a public one; `*.example.org` matches all names below example.org."""
    return name == public[0] or (public[0].startswith("*.") and name.endswith(public[0][1:]))
