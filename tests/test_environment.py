"""Environments of batch systems, service accounts and companies: long TMPDIR, no home directory, a proxy."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
import requests

from lakd_ray import environment
from lakd_ray.cluster import ray_session
from lakd_ray.config import ClusterConfig
from lakd_ray.errors import ResourceError

UNPRIVILEGED = 54321  # a user without an entry in /etc/passwd


class RecordingProxy:
    """A proxy that records the requests and rejects them."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingProxy]:
    recording = RecordingProxy()
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, recording.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "intranet.example")
    yield recording
    recording.close()


def try_all(url: str) -> None:
    """Send a request with each client that Ray, the trackers and this package use."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler())  # urllib's default opener is cached
    clients = (lambda: opener.open(url, timeout=5), lambda: requests.get(url, timeout=5), lambda: httpx.get(url))
    for send in clients:
        try:
            send()
        except (OSError, httpx.HTTPError):
            continue


def test_requests_to_this_machine_and_the_cluster_are_not_sent_to_a_proxy(proxy: RecordingProxy):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    local = [f"http://127.0.0.1:{port}", f"http://localhost:{port}", f"http://{socket.gethostname()}:{port}"]
    try_all(local[0])
    assert len(proxy.requests) == 3, "the clients of this test do not use the proxy"
    proxy.requests.clear()
    with environment.prepared():
        environment.bypass_proxies(
            "http://head.cluster.invalid:8265", "https://public.example", "ray.invalid:6379", "auto"
        )
        for url in (
            *local,
            "http://head.cluster.invalid:8265",
            "http://ray.invalid:8265",
            "http://metadata.google.internal",
        ):
            try_all(url)
        assert not proxy.requests
        assert "intranet.example" in os.environ["NO_PROXY"]
        try_all("http://public.example/")
        assert len(proxy.requests) == 3
    assert os.environ["NO_PROXY"] == "intranet.example"


def test_a_long_temporary_folder_is_used_by_a_short_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = tmp_path / "slurm_jobdir/1355700/a.user.of.a.department/tmp.t0016"
    long.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with environment.prepared():
        short = Path(tempfile.gettempdir())
        assert len(os.fsencode(short)) <= environment.MAX_TEMPORARY_PATH
        assert stat.S_IMODE(short.parent.stat().st_mode) == 0o700
        with tempfile.NamedTemporaryFile() as file:
            assert (long / Path(file.name).name).exists()
    assert not short.parent.exists()
    assert os.environ["TMPDIR"] == str(long) and tempfile.gettempdir() == str(long)


def test_without_a_place_for_a_short_link_ray_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(environment, "_SHORT_FOLDERS", ())
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # earlier tests have a session
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(ResourceError, match=r"set TMPDIR or RAY_TMPDIR to a shorter one"),
        ray_session(ClusterConfig(), 2),
    ):
        pass


SHOW = """
import getpass, os, sys
from lakd_ray import environment
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))  # not before: the interpreter may be in a folder of root
with environment.prepared():
    assert environment.replaced_home()
    print(os.environ.get("HOME"), os.environ.get("RAY_AUTH_TOKEN_PATH"), os.environ.get("HF_HOME"), getpass.getuser())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("home", ["missing", "read-only", "unset"])
def test_an_account_without_a_home_directory_has_a_private_folder(home: str):
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lakd-") as folder:
        temporary, read_only = Path(folder, "tmp"), Path(folder, "home")
        for path in (temporary, read_only):
            path.mkdir()
        Path(folder).chmod(0o755)
        os.chown(temporary, UNPRIVILEGED, UNPRIVILEGED)
        values = {"missing": {"HOME": f"{folder}/none"}, "read-only": {"HOME": str(read_only)}, "unset": {}}[home]
        done = subprocess.run(
            [sys.executable, "-c", SHOW, str(UNPRIVILEGED)], cwd="/", check=False, capture_output=True, text=True,
            env={"TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin", **values},
        )  # fmt: skip
        assert "cannot be written" in done.stderr and "Traceback" not in done.stderr
        used, token, cache, user = done.stdout.split()
        private = temporary / f"lakd-home-{UNPRIVILEGED}"
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        if home == "read-only":
            assert (used, cache) == (str(read_only), str(private / "huggingface"))
            assert stat.S_IMODE(Path(token).stat().st_mode) == 0o600 and len(Path(token).read_text()) == 64
        else:
            assert (used, token) == (str(private), "None")
        assert user == f"user-{UNPRIVILEGED}"
