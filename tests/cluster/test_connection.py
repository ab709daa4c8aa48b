"""An address that does not belong to a cluster is an error within the deadline, whatever listens there."""

import json
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from lakd_ray.cli.main import main
from lakd_ray.cluster import check_connection, ray_session
from lakd_ray.config import ClusterConfig
from lakd_ray.errors import ResourceError

SETTINGS_FRAME = b"\0\0\0\4\0\0\0\0\0"


@contextmanager
def listening(respond: Callable[[socket.socket], None]) -> Iterator[str]:
    """Accept connections and pass each to a function; they stay open."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    accepted.append(server.accept()[0])
                except OSError:
                    return
                respond(accepted[-1])

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in accepted:
                connection.close()


class ControlService(gcs_service_pb2_grpc.InternalKVGcsServiceServicer):
    """The part of Ray's control service that the check reads, with any version."""

    def __init__(self, ray_version: str, accepts_token: bool) -> None:
        self.ray_version, self.accepts_token = ray_version, accepts_token

    def InternalKVGet(self, request, context):
        if not self.accepts_token:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        metadata = {"ray_version": self.ray_version, "python_version": platform.python_version()}
        return gcs_service_pb2.InternalKVGetReply(value=json.dumps(metadata).encode())


@contextmanager
def control_service(ray_version: str = ray.__version__, *, accepts_token: bool = True) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    service = ControlService(ray_version, accepts_token)
    gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@pytest.fixture(autouse=True)
def without_token(monkeypatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (lambda connection: None, r"no response of a Ray cluster .* within 0\.5 s \(cluster\.connect_s\)"),
        (lambda connection: connection.sendall(SETTINGS_FRAME), "no response of a Ray cluster"),
        (lambda connection: connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n"), "a web server, such as a dashboard"),
        (lambda connection: connection.sendall(b"-ERR unknown command 'PRI'\r\n"), "a Redis server"),
        (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), "a server that responds with b'SSH-2.0"),
        (lambda connection: connection.shutdown(socket.SHUT_RDWR), "a server that closes the connection"),
    ],
    ids=["silent", "silent after the first frame", "http", "redis", "ssh", "closes"],
)  # fmt: skip
def test_other_servers(respond, message):
    with listening(respond) as address:
        started = time.monotonic()
        with pytest.raises(ResourceError, match=message):
            check_connection(address, 0.5)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "no Ray cluster at 127.0.0.1:9: Connection refused"),
        ("no-such-host.invalid:6379", "no Ray cluster at no-such-host.invalid:6379|no response"),
        ("http://127.0.0.1:8265", "is of a dashboard, where jobs are submitted"),
        ("ray://127.0.0.1:10001", "is of Ray's client server"),
        ("nonsense", "'nonsense' is no address of a Ray cluster; expected host:port or auto"),
        ("head:65536", "no address of a Ray cluster"),
    ],
)
def test_addresses_without_a_server(address, message):
    with pytest.raises(ResourceError, match=message) as error:
        check_connection(address, 5)
    assert "RAY_ADDRESS" in str(error.value)


def test_version_and_token():
    with control_service() as address:
        assert f"responds: Ray {ray.__version__}" in check_connection(address, 10)
    with control_service("2.9.0") as address, pytest.raises(ResourceError, match=r"has Ray 2\.9\.0 with Python"):
        check_connection(address, 10)
    with control_service(accepts_token=False) as address, pytest.raises(ResourceError, match="rejects the token"):
        check_connection(address, 10)


def test_every_session_checks_its_address(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        listening(lambda connection: None) as address,
        pytest.raises(ResourceError, match=r"within 0\.3 s"),
        ray_session(ClusterConfig(address=address, connect_s=0.3), 2),
    ):
        pass


@pytest.mark.parametrize(
    "command",
    ["prepare", "train-teachers", "distill", "evaluate", "tune", "report", "serve", "pipeline", "run-grid", "doctor"],
)
def test_every_command_ends_if_the_cluster_is_silent(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was started"))
    with listening(lambda connection: None) as address:
        settings = [f"storage={tmp_path}", f"cluster.address={address}", "cluster.connect_s=0.3"]
        assert main([command, "demo", "--set", *settings]) == 2
    printed = capsys.readouterr()
    assert f"no response of a Ray cluster from {address} within 0.3 s" in printed.out + printed.err


def test_bulk_prediction_ends_if_there_is_no_cluster(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was started"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert main(["predict-batch", str(tmp_path), str(tmp_path / "out"), "--model", str(tmp_path)]) == 2
    assert "no Ray cluster at 127.0.0.1:9: Connection refused" in capsys.readouterr().err
