"""Loopback addresses are recognized, and no proxy is used for them."""

import pytest

from lakd_ray.addresses import find_proxy, is_loopback


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1"]
)
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "localhost.example.org", "127.0.0.1.example.org", "0.0.0.0", "10.0.0.1", "::", "2130706433", "127.1"]
)
def test_other_hosts_are_not_loopback(host):
    assert not is_loopback(host)


def test_proxies_of_the_environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert find_proxy("http://speech.example.org:8000") is None
    monkeypatch.setenv("http_proxy", "proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "internal.example.org,10.0.0.7")
    assert find_proxy("http://speech.example.org:8000") == "http://proxy.example.org:3128"
    assert find_proxy("https://speech.example.org") is None
    for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000", "10.0.0.7", "a.internal.example.org:8000"):
        assert find_proxy(f"http://{host}/v1/model") is None
    monkeypatch.setenv("all_proxy", "http://other.example.org:3128")
    assert find_proxy("https://speech.example.org") == "http://other.example.org:3128"
    monkeypatch.setenv("no_proxy", "*")
    assert find_proxy("http://speech.example.org") is None
