"""The token of a cluster is readable by its owner alone, whoever writes it, and Ray's metrics are not open to all."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lakd_ray import ray_token

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a home directory, with the usual umask."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    previous = os.umask(0o022)
    yield tmp_path
    os.umask(previous)


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o777


def test_a_new_token_is_private(home):
    ray_token.prepare_token()
    file = ray_token.token_file()
    token = file.read_text()
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert mode(file) == 0o600 and mode(file.parent) == 0o700
    ray_token.prepare_token()
    assert file.read_text() == token
    assert [entry.name for entry in file.parent.iterdir()] == ["auth_token"]


def test_a_readable_token_is_restricted_with_a_warning(home, caplog):
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    assert mode(file) == 0o644
    ray_token.prepare_token()
    assert mode(file) == 0o600 and file.read_text() == "secret"
    assert "could be read by other users" in caplog.text and "secret" not in caplog.text


def test_processes_that_start_together_share_one_token(home):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ray_token.prepare_token(), range(8)))
    assert re.fullmatch("[0-9a-f]{64}", ray_token.token_file().read_text())
    assert [entry.name for entry in (home / ".ray").iterdir()] == ["auth_token"]


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "given")])
def test_no_file_is_written_where_none_is_needed(home, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    ray_token.prepare_token()
    assert not (home / ".ray").exists()


@pytest.mark.parametrize("file", ["cluster/local.sh", "cluster/slurm.sh", "docs/tutorials/cluster.md", "README.md"])
def test_every_command_that_creates_a_token_has_a_private_umask(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for match in re.finditer("get-auth-token --generate", text):
        assert "umask 077" in text[: match.start()], file


@pytest.mark.parametrize("file", ["cluster/local.sh", "cluster/slurm.sh"])
def test_scripts_start_ray_without_open_metrics(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for name in ("RAY_enable_metrics_collection", "AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"):
        assert re.search(rf"export .*\b{name}=", text), f"{file}: {name}"


PORTS = """
import os, socket, tempfile, urllib.request
import psutil
from lakd_ray.cluster import ray_session
from lakd_ray.config import ClusterConfig

with ray_session(ClusterConfig(object_store_mb=80), 2):
    import ray
    assert sum(ray.data.range(10).map_batches(lambda batch: batch).take_all()[i]["id"] for i in range(10)) == 45
    session = os.path.realpath(ray._private.worker._global_node.get_session_dir_path())
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in family for connection in process.net_connections("tcp") if connection.status == "LISTEN"
    }
    for ip, port in sorted(listening):
        if ip in ("127.0.0.1", "::1"):
            continue
        host = ray.util.get_node_ip_address()
        for path in ("/metrics", "/"):
            try:
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                    f"http://{host}:{port}{path}", timeout=5
                ) as response:
                    print("OPEN", port, path, response.read(200))
            except Exception as error:
                print("closed", port, path, type(error).__name__)
    print("TOKEN", oct(os.stat(os.path.expanduser("~/.ray/auth_token")).st_mode & 0o777))
"""


@pytest.mark.slow
@pytest.mark.ray
def test_no_port_of_a_local_cluster_answers_without_the_token(home):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PORTS], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "closed" in done.stdout and "OPEN" not in done.stdout, done.stdout
    assert "TOKEN 0o600" in done.stdout
