"""Recognize the addresses of this machine, and find the proxy for a URL."""

import ipaddress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def parse_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a host of a URL is, with or without brackets; None for a name."""
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    """Return whether a host name or address always means this machine: localhost, *.localhost, 127.0.0.0/8 or ::1."""
    address = parse_ip(host)
    if address is not None:
        return address.is_loopback
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def find_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for a URL (http_proxy, https_proxy, all_proxy, no_proxy).

    Loopback addresses have none: a proxy on a different machine would connect to itself, and would receive the tokens
    and recordings of requests that need not leave this machine.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(f"{host}:{parts.port}" if parts.port else host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy or None
