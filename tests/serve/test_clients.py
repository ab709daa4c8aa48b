"""The names of clients, by which they take turns."""

import pytest
from starlette.requests import HTTPConnection

from lakd_ray.serve.clients import identify_client


def client(address: str | None, key: str | None = None, header: str = "") -> str:
    scope = {"type": "http", "headers": [(b"authorization", header.encode())]}
    return identify_client(HTTPConnection(scope | {"client": address and (address, 1234)}), key)


def test_a_checked_key_identifies_a_client_at_any_address():
    assert client("192.0.2.1", "first key") == client("192.0.2.2", "first key") != client("192.0.2.1", "second key")
    assert "first key" not in client("192.0.2.1", "first key"), "keys appear in no name"


def test_unchecked_headers_change_nothing():
    assert client("192.0.2.1", header="Bearer a") == client("192.0.2.1", header="Bearer b") == client("192.0.2.1")


@pytest.mark.parametrize("address", ["192.0.2.2", "testclient", None, "2001:db8::1"])
def test_addresses_are_different_clients(address):
    assert client(address) != client("192.0.2.1")


def test_one_ipv6_network_is_one_client():
    assert client("2001:db8:1:2::1") == client("2001:db8:1:2:ffff::9") != client("2001:db8:1:3::1")
