"""Bytes that are not quite HTTP have a response, or the connection is closed where that is allowed."""

from urllib.parse import urlsplit

import pytest
from support.fake_model import FakeModel
from support.local_endpoint import running_api
from support.raw_http import HEAD, RAW, RawRequest, send_raw


@pytest.fixture(scope="module")
def address(decoders):
    with running_api(FakeModel(), decoders, deadline_s=2.0) as url:
        parts = urlsplit(url)
        yield str(parts.hostname), int(parts.port or 0)


@pytest.mark.parametrize("number", range(len(RAW)))
def test_malformed_requests(address, number):
    status = send_raw(address, RAW[number])
    assert RAW[number].accepts(status), (RAW[number].content[:200], status)
    assert status != 200


def test_a_closed_connection_is_no_response(address):
    assert send_raw(address, RawRequest(HEAD + b"Content-Length: 10\r\n\r\nRIFF", may_close=True)) is None
    assert not RawRequest(b"").accepts(None)
    assert not RawRequest(b"", may_close=True).accepts(500)


def test_two_hosts_are_rejected(address):
    request = RawRequest(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
    assert send_raw(address, request) == 400


def test_absolute_target_does_not_replace_the_host(address):
    request = RawRequest(b"GET http://localhost/ HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert send_raw(address, request) == 421
