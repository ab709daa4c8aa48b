"""Checks of Ray: the token, whether the named cluster answers, what it has, and each of its nodes."""

import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lakd_ray import cluster
from lakd_ray.cluster import cluster_address, local_cpus
from lakd_ray.config import Experiment
from lakd_ray.ops.doctor import host_checks
from lakd_ray.ops.doctor.check import Check, CheckResult, Status, run_checks

CONNECT_TIMEOUT_S = 5.0
# What opens a connection of HTTP/2, on which gRPC runs, and an empty SETTINGS frame; servers answer with their own.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
NODES_TIMEOUT_S = 120.0  # a worker process starts on each node, and imports torch where there are GPUs
_SEVERITY: tuple[Status, ...] = ("ok", "warn", "fail")


def check_token(address: str) -> CheckResult:
    """The token that a cluster with authentication asks for, where Ray looks for it."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        todo = "export RAY_AUTH_MODE=token, here and wherever Ray is started"
        found = f"RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE') or 'not set'}, cluster {address}"
        return CheckResult("token", "warn", found, "token authentication: an open cluster runs anybody's code", todo)
    if os.environ.get("RAY_AUTH_TOKEN"):
        return CheckResult("token", "ok", "RAY_AUTH_TOKEN")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    todo = f"copy the cluster's token to {file}, or name it in RAY_AUTH_TOKEN_PATH"
    try:
        there = bool(file.read_text(encoding="utf-8").strip())
    except OSError as error:
        return CheckResult("token", "fail", f"cannot read {file}: {error.strerror}", "the cluster's token", todo)
    return (
        CheckResult("token", "ok", str(file))
        if there
        else CheckResult("token", "fail", f"{file} is empty", "a token", todo)
    )


def check_connection(address: str) -> CheckResult:
    """Whether Ray answers at the address; its own client would try for many minutes."""
    host, _, number = address.rpartition("://")[2].rpartition(":")
    if not host or not number.isdigit():
        return CheckResult("cluster", "ok", address)  # `auto` and other names, which Ray resolves at once
    try:
        with socket.create_connection((host.strip("[]"), int(number)), timeout=CONNECT_TIMEOUT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("0", "false"):
                connection.sendall(_HTTP2_PREFACE)
                if not connection.recv(1):
                    raise ConnectionError("it closes the connection")
    except OSError as error:
        todo = "correct cluster.address or RAY_ADDRESS, or start the cluster"
        found = (
            f"nothing from {address} within {CONNECT_TIMEOUT_S:g} s"
            if isinstance(error, TimeoutError)
            else f"{address}: {error}"
        )
        return CheckResult("cluster", "fail", found, "a Ray cluster there", todo)
    return CheckResult("cluster", "ok", f"{address} answers")


def check_capacity(config: Experiment, stages: Collection[str]) -> CheckResult:
    """CPUs and GPUs against what the stages need."""
    have = _available_resources(config)
    told = f"{have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
    if cluster_address(config) is None:
        told += f" by number, on a machine with {os.cpu_count()} cores"
    if short := cluster.missing_resources(config, stages, have):
        return CheckResult("resources", "fail", told, hint=" ".join(short))
    return CheckResult("resources", "ok", told)


def _available_resources(config: Experiment) -> dict[str, float]:
    """Of the cluster that is joined; what one started here would have, before it is."""
    if ray.is_initialized():
        return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]  # untyped in Ray
    gpus = 0
    if config.train.gpu:
        import torch  # takes a second

        gpus = torch.cuda.device_count()
    return {"CPU": local_cpus(config), "GPU": gpus}


def check_nodes(config: Experiment) -> list[CheckResult]:
    """The machine's checks on every node at once: for each check the gravest result, with the nodes that gave it."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # untyped in Ray
    look = ray.remote(num_cpus=0, max_retries=0)(_run_node_checks)
    asked = {}
    for node in alive:
        on = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        gpu = node["Resources"].get("GPU", 0) > 0
        asked[look.options(scheduling_strategy=on).remote(config.model_dump(), gpu)] = node["NodeManagerAddress"]
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODES_TIMEOUT_S)
    found: dict[str, list[tuple[str, CheckResult]]] = {}
    for reference in done:
        for result in _node_results(reference):
            found.setdefault(result.name, []).append((asked[reference], result))
    merged = [_worst(name, of) for name, of in found.items()]
    if late:
        told = f"no answer from {', '.join(asked[one] for one in late)} within {NODES_TIMEOUT_S:g} s"
        merged.append(CheckResult("nodes", "fail", told, f"{len(asked)} nodes", "see `ray status` and the node's log"))
    return merged


def _node_results(reference: Any) -> list[CheckResult]:
    try:
        return list(ray.get(reference))
    except (ray.exceptions.RayError, ImportError) as error:
        todo = "install lakd-ray in the same version on every node"
        return [CheckResult("nodes", "fail", str(error).strip().splitlines()[-1], "lakd-ray to answer there", todo)]


def _run_node_checks(experiment: dict[str, Any], gpu: bool) -> list[CheckResult]:
    config = Experiment.model_validate(experiment)
    if gpu and not os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides them from tasks that reserve none, which might wait
    return run_checks(host_checks.node_checks(config, gpu=gpu))


def _worst(name: str, results: list[tuple[str, CheckResult]]) -> CheckResult:
    status = max((result.status for _, result in results), key=_SEVERITY.index)
    shown: dict[str, list[str]] = {}
    for address, result in results:
        if result.status == status:
            shown.setdefault(result.found, []).append(address)
    told = "; ".join(f"{text} ({_format_addresses(addresses)})" for text, addresses in shown.items())
    first = next(result for _, result in results if result.status == status)
    return CheckResult(name, status, told, first.expected, first.hint)


def _format_addresses(addresses: list[str]) -> str:
    return ", ".join(addresses) if len(addresses) < 4 else f"{len(addresses)} nodes, {addresses[0]} the first"


def capacity_check(config: Experiment, stages: Collection[str]) -> Check:
    """The check of CPUs and GPUs."""
    waits_for = f"the cluster {cluster_address(config)}" if cluster_address(config) else "this machine"
    return Check("resources", lambda: check_capacity(config, stages), waits_for)
