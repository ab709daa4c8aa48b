"""Identify the client of a request or a stream, to share the endpoint fairly between clients."""

import hashlib
import ipaddress

from starlette.requests import HTTPConnection

_IPV6_PREFIX = 64  # one subscriber usually has a network of this size


def identify_client(connection: HTTPConnection, key: str | None) -> str:
    """Return a name of the client: a hash of its API key, else its address.

    Args:
        connection: the request or the stream.
        key: the key, which has been checked; None if the endpoint has no keys. With unchecked keys, a client could
            choose a new name for each request.
    """
    if key is not None:
        return f"key {hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return f"address {subscriber_network(connection.client.host if connection.client else 'unknown')}"


def subscriber_network(host: str) -> str:
    """Return an address, or of an IPv6 address the network of one subscriber, who has all addresses in it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(address if address.version == 4 else ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
