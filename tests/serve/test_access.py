"""Requests of foreign web pages and of other machines are rejected, those of clients and of the endpoint's page not."""

from typing import Any

import pytest
from pydantic import ValidationError
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from support.fake_model import FakeModel

from lakd_ray.config import ServeConfig
from lakd_ray.serve.access import AccessPolicy
from lakd_ray.serve.api import ModelRouter, create_app
from lakd_ray.serve.errors import RequestError

LOCAL = "127.0.0.1:8000"
GATEWAY = {"public_hosts": ["speech.example.org"]}


def status(
    host: str | list[str] | None = LOCAL,
    *,
    client: str | None = "127.0.0.1",
    server: str = "127.0.0.1",
    method: str = "POST",
    requires_key: bool = True,
    settings: dict[str, Any] | None = None,
    **headers: str,
) -> int:
    """Return the status with which the policy rejects a request; 0 if it accepts it."""
    hosts = [] if host is None else [host] if isinstance(host, str) else host
    named = [("host", name) for name in hosts] + [(name.replace("_", "-"), value) for name, value in headers.items()]
    connection = HTTPConnection(
        {
            "type": "http",
            "method": method,
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in named],
            "client": None if client is None else (client, 50_000),
            "server": (server, 8000),
        }
    )
    try:
        AccessPolicy(ServeConfig(**(settings or {})), requires_key=requires_key).check(connection)
    except RequestError as error:
        return error.status
    return 0


@pytest.mark.parametrize("host", [
    None, LOCAL, "127.0.0.1", "localhost:8000", "LocalHost", "demo.localhost:1", "127.5.5.5", "[::1]:8000",
    "[::ffff:127.0.0.1]", "localhost.",
])  # fmt: skip
def test_loopback_hosts_are_accepted(host):
    assert status(host) == 0


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil", "10.0.0.1",
    "0.0.0.0:8000", "localhostx", "[2001:db8::1]", "speech.example.org.evil.example", "xspeech.example.org",
])  # fmt: skip
def test_unknown_hosts_are_rejected(host):
    assert status(host) == 421
    assert status(host, settings=GATEWAY) == 421
    assert status(host, method="GET") == 421


@pytest.mark.parametrize(
    "host", ["", "a b", "localhost/", "user@localhost", "localhost:x", "localhost, evil", "é", [LOCAL, "evil.example"]]
)
def test_invalid_hosts_are_rejected(host):
    assert status(host) == 400


@pytest.mark.parametrize(
    ("settings", "host", "server", "expected"),
    [
        (GATEWAY, "Speech.Example.org", "", 0),
        (GATEWAY, "speech.example.org:8443", "", 0),
        ({"public_hosts": ["*.example.org"]}, "a.example.org", "", 0),
        ({"public_hosts": ["*.example.org"]}, "example.org", "", 421),
        ({"public_hosts": ["*.example.org"]}, "aexample.org", "", 421),
        ({"public_hosts": ["*"]}, "evil.example", "", 0),
        ({"host": "10.0.0.5"}, "10.0.0.5:8000", "", 0),
        ({"host": "10.0.0.5"}, "10.0.0.6:8000", "", 421),
        ({"host": "speech"}, "speech:8000", "", 0),
        ({"host": "0.0.0.0"}, "10.0.0.6:8000", "", 0),
        ({"host": "0.0.0.0"}, "evil.example", "", 421),
        ({"host": "::"}, "[2001:db8::1]", "", 0),
        ({}, "10.0.0.7:8000", "10.0.0.7", 0),  # the address that the connection was made to
        ({}, "10.0.0.8:8000", "10.0.0.7", 421),
    ],
)
def test_hosts_of_settings_and_bound_addresses(settings, host, server, expected):
    assert status(host, server=server, settings=settings) == expected


@pytest.mark.parametrize(("host", "origin", "settings", "expected"), [
    (LOCAL, "http://127.0.0.1:8000", {}, 0),
    ("localhost", "http://localhost", {}, 0),
    ("[::1]:8000", "http://[::1]:8000", {}, 0),
    (LOCAL, "https://evil.example", {}, 403),
    (LOCAL, "http://127.0.0.1:3000", {}, 403),
    (LOCAL, "http://127.0.0.1", {}, 403),
    (LOCAL, "http://localhost:8000", {}, 403),
    (LOCAL, "null", {}, 403),
    (LOCAL, "", {}, 403),
    (LOCAL, "http://127.0.0.1:8000.evil.example", {}, 403),
    (LOCAL, "http://127.0.0.1:8000@evil.example", {}, 403),
    (LOCAL, "http://evil@127.0.0.1:8000", {}, 403),
    (LOCAL, "http://[", {}, 403),
    (LOCAL, "https://app.example.org", {"allowed_origins": ["https://app.example.org"]}, 0),
    (LOCAL, "https://App.example.org:443", {"allowed_origins": ["https://app.example.org"]}, 0),
    (LOCAL, "http://app.example.org", {"allowed_origins": ["https://app.example.org"]}, 403),
    (LOCAL, "https://evil.example", {"allowed_origins": ["*"]}, 0),
    ("speech.example.org", "https://speech.example.org", GATEWAY, 0),
    ("speech.example.org:8443", "https://speech.example.org:8443", GATEWAY, 0),
    (LOCAL, "https://speech.example.org", GATEWAY, 0),  # a gateway that replaces Host
    (LOCAL, "https://speech.example.org:8443", GATEWAY, 403),
    (LOCAL, "https://speech.example.org:8443", {"public_hosts": ["speech.example.org:8443"]}, 0),
    (LOCAL, "https://evil.example", {"public_hosts": ["*"]}, 403),
])  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
def test_origins(host, origin, settings, method, expected):
    assert status(host, method=method, settings=settings, origin=origin) == expected


def test_forwarded_host_of_a_client_is_not_used():
    assert status("evil.example", settings=GATEWAY, x_forwarded_host="speech.example.org") == 421
    assert status(LOCAL, origin="https://evil.example", x_forwarded_host="evil.example") == 403
    assert status(LOCAL, settings=GATEWAY, origin="https://speech.example.org", x_forwarded_host="anything") == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_fetch_metadata_of_other_sites(site):
    page = {"sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert status(sec_fetch_site=site) == status(method="GET", sec_fetch_site=site) == 403
    assert status(method="GET", sec_fetch_site=site, **page) == 0  # a link to the page
    assert status(method="GET", sec_fetch_site=site, **page | {"sec_fetch_dest": "iframe"}) == 403
    assert status(method="POST", sec_fetch_site=site, **page) == 403  # a form


def test_fetch_metadata_of_the_own_page_and_of_the_address_bar():
    assert status(sec_fetch_site="same-origin") == status(method="GET", sec_fetch_site="none") == 0
    assert status(sec_fetch_site="same-origin", origin="null") == 0  # the page has Referrer-Policy: no-referrer
    assert status(sec_fetch_site="same-origin", origin="https://evil.example") == 403


@pytest.mark.parametrize(("client", "expected"), [
    ("127.0.0.1", 0), ("::1", 0), ("::ffff:127.0.0.1", 0), (None, 0), ("", 0),
    ("10.0.0.9", 403), ("2001:db8::1", 403), ("::ffff:10.0.0.9", 403),
])  # fmt: skip
def test_other_machines_need_a_key_or_an_explicit_setting(client, expected):
    assert status(client=client, requires_key=False) == expected
    assert status(client=client, requires_key=False, settings={"open_access": True}) == 0
    assert status(client=client, requires_key=True) == 0


@pytest.mark.parametrize(("name", "value"), [
    ("public_hosts", "https://speech.example.org"), ("public_hosts", "a/b"), ("public_hosts", ""),
    ("public_hosts", "a b"), ("allowed_origins", "app.example.org"), ("allowed_origins", "https://a.example/path"),
    ("allowed_origins", "null"),
])  # fmt: skip
def test_invalid_settings_are_rejected(name, value):
    with pytest.raises(ValidationError, match=r"expected (one|scheme)"):
        ServeConfig(**{name: [value]})


@pytest.fixture
def client(decoders):
    def create(**settings: Any) -> TestClient:
        app = create_app(ModelRouter(FakeModel()), ServeConfig(**settings), decoders)
        return TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50_000))

    return create


EVIL = {"Origin": "https://evil.example"}
PATHS = ["/", "/docs", "/openapi.json", "/v1/model", "/metrics", "/-/healthz", "/page/app.js", "/nothing"]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_checks_host_and_origin(client, path):
    api = client()
    assert api.get(path).status_code == (404 if path == "/nothing" else 200)
    rejected = api.get(path, headers={"Host": "evil.example"})
    assert (rejected.status_code, list(rejected.json())) == (421, ["error"])
    assert "serve.public_hosts" in rejected.json()["error"]
    assert api.get(path, headers=EVIL).status_code == 403


def test_form_of_a_foreign_page_is_not_computed(client, recording):
    model = FakeModel()
    api = client()
    api.app = create_app(ModelRouter(model), ServeConfig(), None)  # type: ignore[arg-type] # never decodes
    for headers in (EVIL, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        response = TestClient(api.app, base_url="http://127.0.0.1").post(
            "/v1/emotion", files={"file": ("a.wav", recording())}, headers=headers
        )
        assert (response.status_code, list(response.json())) == (403, ["error"])
    assert not model.waves


def test_stream_of_a_foreign_page_is_closed_with_the_reason(client):
    for headers in (EVIL, {"Host": "evil.example"}):
        with client().websocket_connect("/v1/stream", headers=headers) as session:
            assert "error" in session.receive_json()
            with pytest.raises(WebSocketDisconnect) as closed:
                session.receive_text()
            assert closed.value.code == 1008


def test_pages_of_allowed_origins_read_responses(client, recording):
    origin = {"Origin": "https://app.example.org"}
    api = client(allowed_origins=["https://app.example.org"])
    requested = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,authorization",
    }
    preflight = api.options("/v1/emotion", headers=origin | requested)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == origin["Origin"]
    response = api.post("/v1/emotion", content=recording(), headers=origin | {"Content-Type": "audio/wav"})
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == origin["Origin"]
    assert api.options("/v1/emotion", headers=EVIL | requested).status_code == 403
    assert "Access-Control-Allow-Origin" not in client().get("/v1/model").headers
