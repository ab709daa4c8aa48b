"""Check that a Ray cluster responds at an address, because Ray's own client would retry there for minutes.

The check uses the protocol of Ray's global control service, with one deadline for all steps: resolve the name,
connect, compare the first bytes of the response with those of gRPC, and read the cluster's version with the token.
"""

import json
import os
import platform
import socket
import threading
import time
from typing import Any

import grpc  # type: ignore[import-untyped]  # it has no stubs
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from lakd_ray.errors import ResourceError

_DASHBOARD_PORT = 8265
# Connection preface of HTTP/2, which gRPC uses, with an empty SETTINGS frame; a server responds with its own frame.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_HTTP2_FRAME_BYTES, _HTTP2_SETTINGS = 9, 4
_HINT = "Correct cluster.address or RAY_ADDRESS (host:port of the head node, 6379 by default), or start the cluster."


def check_connection(address: str, timeout_s: float) -> str:
    """Check that a Ray cluster with the local versions of Ray and Python responds, and accepts the local token.

    Args:
        address: `host:port` of the head node, or `auto` for a cluster that was started on this machine.
        timeout_s: deadline for the complete check, in seconds.

    Returns:
        The cluster in words, for a log line or a table.

    Raises:
        ResourceError: the address does not belong to a cluster, nothing responds in time, or the client is rejected.
    """
    outcome: list[str | ResourceError] = []

    def run() -> None:
        try:
            outcome.append(_check(address, timeout_s))
        except ResourceError as error:
            outcome.append(error)

    # In a thread, because resolving a name and opening a channel have no deadline of their own.
    thread = threading.Thread(target=run, name="check the cluster's address", daemon=True)
    thread.start()
    thread.join(timeout_s + 1)
    if not outcome:
        raise ResourceError(_silence(address, timeout_s))
    if isinstance(outcome[0], ResourceError):
        raise outcome[0]
    return outcome[0]


def _silence(address: str, timeout_s: float) -> str:
    return (
        f"no response of a Ray cluster from {address} within {timeout_s:g} s (cluster.connect_s). {_HINT} A firewall "
        "or an overloaded head node can be the cause, too."
    )


def _check(address: str, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    try:
        host, port = _parse_address(address)
        if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
            _check_protocol(host, port, deadline)
        metadata = _read_metadata(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", deadline)
    except TimeoutError:
        raise ResourceError(_silence(address, timeout_s)) from None
    except OSError as error:  # a name that cannot be resolved, or a closed port
        raise ResourceError(f"no Ray cluster at {address}: {error.strerror or error}. {_HINT}") from None
    found = metadata.get("ray_version"), metadata.get("python_version")
    local = ray.__version__, platform.python_version()
    if found != local:
        raise ResourceError(
            f"the cluster at {address} has Ray {found[0]} with Python {found[1]}, expected Ray {local[0]} with Python "
            f"{local[1]} as here: Ray needs the same versions on all machines. Install them here, or on the cluster."
        )
    return f"{address} responds: Ray {found[0]}"


def _parse_address(address: str) -> tuple[str, int]:
    """Return host and port of an address that `ray.init` would take.

    Raises:
        ResourceError: it has a different form, or it is the address of a dashboard or of Ray's client server.
    """
    scheme, separator, rest = address.rpartition("://")
    if separator:
        kind = {"http": "a dashboard, where jobs are submitted", "ray": "Ray's client server"}.get(scheme, "no cluster")
        raise ResourceError(
            f"the address {address} is of {kind}; expected host:port of the head node, 6379 by default, without "
            f"{scheme}://. Correct cluster.address or RAY_ADDRESS; jobs/submit.py takes the dashboard's address."
        )
    if address == "auto":
        try:
            rest = canonicalize_bootstrap_address_or_die(address)
        except (ConnectionError, ValueError) as error:
            raise ResourceError(
                f"cluster.address or RAY_ADDRESS is auto, but no cluster runs on this machine: {error}"
            ) from None
    host, _, port = rest.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ResourceError(f"{address!r} is no address of a Ray cluster; expected host:port or auto. {_HINT}")
    return host.strip("[]"), int(port)


def _check_protocol(host: str, port: int, deadline: float) -> None:
    """Check that the server's first bytes are those of gRPC.

    Raises:
        ResourceError: it is a different kind of server.
        OSError: the name cannot be resolved, or nothing listens; TimeoutError: no response.
    """
    with socket.create_connection((host, port), timeout=_remaining(deadline)) as connection:
        connection.sendall(_HTTP2_PREFACE)
        received = b""
        while len(received) < _HTTP2_FRAME_BYTES:
            connection.settimeout(_remaining(deadline))
            part = connection.recv(256)
            if not part:
                break
            received += part
    if len(received) >= _HTTP2_FRAME_BYTES and received[3] == _HTTP2_SETTINGS:
        return
    if received.startswith(b"HTTP/"):
        kind = "a web server, such as a dashboard" + (f" (port {_DASHBOARD_PORT})" if port == _DASHBOARD_PORT else "")
    elif received.startswith((b"-", b"+")):
        kind = "a Redis server"
    elif not received:
        kind = "a server that closes the connection"
    else:
        kind = f"a server that responds with {received[:20]!r}"
    raise ResourceError(f"at {host}:{port} is {kind}, expected the head node of a Ray cluster. {_HINT}")


def _remaining(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _read_metadata(target: str, deadline: float) -> dict[str, Any]:
    """Return the metadata that Ray compares when a node joins, which include its version.

    Raises:
        ResourceError: the cluster rejects the token, or the server does not belong to Ray.
        TimeoutError: no response.
    """
    messages: Any = gcs_service_pb2  # generated, without types
    request = messages.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
    try:
        with init_grpc_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
            stub = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            reply = stub.InternalKVGet(request, timeout=_remaining(deadline))
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise ResourceError(
                f"the cluster at {target} rejects the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a "
                f"file with the cluster's token ({error.details()})"
            ) from None
        if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
            raise TimeoutError from None
        raise ResourceError(f"{target} does not respond as a Ray cluster: {error.details()}. {_HINT}") from None
    except ray.exceptions.AuthenticationError as error:
        raise ResourceError(f"cannot read the token of the cluster at {target}: {error}") from None
    content: dict[str, Any] = json.loads(reply.value or b"{}")
    return content
