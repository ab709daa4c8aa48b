"""A real endpoint with API keys, on a cluster that runs already: keys, origins and streams behind Serve's proxy."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from lakd_ray.errors import ResourceError
from lakd_ray.serve.client import Client

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning"),
]

ENVIRONMENT_KEY, FILE_KEY = "key-of-the-environment-0123", "key-of-the-file-0123456789"


def authorization(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of Ray's sessions and their logs."""
    with tempfile.TemporaryDirectory(prefix="lakd-", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def test_keys_of_the_driver_protect_an_endpoint_on_a_running_cluster(
    endpoint, recording, monkeypatch, tmp_path, sessions
):
    monkeypatch.delenv("LAKD_API_KEYS", raising=False)
    monkeypatch.setenv("LAKD_TEST_KEYS", ENVIRONMENT_KEY)  # set in the driver after the cluster has started
    file = tmp_path / "keys"
    file.write_text(FILE_KEY)
    url, _ = endpoint(api_keys_file=str(file), max_streams=2, public_hosts=["speech.example.org"])
    for key in ("", "a-wrong-key-0123456789"):
        with Client(url, api_key=key) as client, pytest.raises(ResourceError, match="401"):
            client.model_info()
    for key in (ENVIRONMENT_KEY, FILE_KEY):
        with Client(url, api_key=key) as client:
            assert client.predict(recording(1.0), language="de").language == "de"
    check_origins(url, recording())
    check_streams(url)
    file.write_text("")
    assert httpx.get(f"{url}/v1/model", headers=authorization(FILE_KEY)).status_code == 401
    assert httpx.get(f"{url}/v1/model", headers=authorization(ENVIRONMENT_KEY)).status_code == 200
    texts = [path.read_bytes() for path in sessions.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(texts) > 10
    assert not any(key.encode() in text for text in texts for key in (ENVIRONMENT_KEY, FILE_KEY))


def check_origins(url: str, content: bytes) -> None:
    form = {"files": {"file": ("a.wav", content)}}
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    key = authorization(FILE_KEY)
    assert httpx.post(f"{url}/v1/emotion", headers=key | foreign, **form).status_code == 403
    own = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    assert httpx.post(f"{url}/v1/emotion", headers=key | own, **form).status_code == 200
    gateway = {"Host": "speech.example.org", "Origin": "https://speech.example.org"}
    assert httpx.post(f"{url}/v1/emotion", headers=key | gateway, **form).status_code == 200
    for path in ("/", "/v1/model", "/metrics", "/docs"):
        assert httpx.get(url + path, headers=key | {"Host": "evil.example"}).status_code == 421


def check_streams(url: str) -> None:
    address = url.replace("http", "ws") + "/v1/stream"
    with connect(address, origin="https://evil.example", additional_headers=authorization(FILE_KEY)) as session:
        assert "evil.example" in json.loads(session.recv(timeout=60))["error"]
    for text in ("[" * 200_000, '{"key": "\\ud800"}', '{"key": ' + "9" * 5000 + "}", '{"type": "stop"}'):
        with connect(address) as session, pytest.raises(ConnectionClosed) as closed:
            session.send(text)
            while True:
                session.recv(timeout=60)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(address))
        with connect(address) as session:
            session.send(json.dumps({"key": FILE_KEY}))
            session.send(bytes(32_000))
            session.send(json.dumps({"type": "end"}))
            assert json.loads(session.recv(timeout=60))["final"]
