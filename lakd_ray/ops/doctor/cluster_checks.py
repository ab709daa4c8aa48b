"""Checks of Ray, from the token and the connection to the resources and nodes of the cluster."""

import os
import socket
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lakd_ray import cluster, ray_token
from lakd_ray.cluster import cluster_address
from lakd_ray.config import Experiment
from lakd_ray.ops.doctor import host_checks
from lakd_ray.ops.doctor.check import Check, CheckResult, Status, run_checks

NODES_TIMEOUT_S = 120.0  # each node starts a worker process, which imports torch if it has GPUs
_METRICS_TIMEOUT_S = 3.0
_SEVERITY: tuple[Status, ...] = ("ok", "warn", "fail")


def check_token(address: str) -> CheckResult:
    """Check that token authentication is on and that Ray finds a token."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        hint = "export RAY_AUTH_MODE=token on every machine of the cluster and here"
        found = f"RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE') or 'not set'}, cluster {address}"
        expected = "token authentication, since a cluster without it runs code of any client"
        return CheckResult("token", "warn", found, expected, hint)
    if os.environ.get("RAY_AUTH_TOKEN"):
        return CheckResult("token", "ok", "RAY_AUTH_TOKEN")
    file = ray_token.token_file()
    hint = f"copy the cluster's token to {file}, or set RAY_AUTH_TOKEN_PATH to its file"
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        return CheckResult("token", "fail", f"cannot read {file}: {error.strerror}", "the cluster's token", hint)
    if not token:
        return CheckResult("token", "fail", f"{file} is empty", "a token", hint)
    return check_token_file()


def check_token_file() -> CheckResult:
    """Check that other users of this machine cannot read the token, which would let them run code as this user."""
    file = ray_token.token_file()
    if not file.exists():
        return CheckResult("token", "ok", f"{file} is created with the first cluster")
    if not ray_token.is_readable_by_others(file):
        return CheckResult("token", "ok", str(file))
    found = f"other users of this machine can read {file} (mode {file.stat().st_mode & 0o777:o})"
    hint = f"chmod 600 {file}; {ray_token.REPLACE_HINT}"
    return CheckResult("token", "warn", found, "a token that only you can read", hint)


def check_connection(address: str, timeout_s: float) -> CheckResult:
    """Check that a Ray cluster of the local version responds at the address and accepts the token."""
    return CheckResult("cluster", "ok", cluster.check_connection(address, timeout_s))


def check_capacity(config: Experiment, stages: Collection[str]) -> CheckResult:
    """Compare the CPUs and GPUs of each node with the needs of the stages."""
    nodes = cluster.all_nodes() if ray.is_initialized() else cluster.local_nodes(config)
    found = f"{sum(node.cpus for node in nodes):g} CPUs, {sum(node.gpus for node in nodes):g} GPUs"
    if cluster_address(config.cluster) is None:
        found += f" for Ray, on a machine with {os.cpu_count()} cores"
    if shortages := cluster.missing_resources(config, stages, nodes):
        return CheckResult("resources", "fail", found, hint=" ".join(shortages))
    return CheckResult("resources", "ok", found)


def check_nodes(config: Experiment) -> list[CheckResult]:
    """Run the host checks on every node; return the worst result of each check with the nodes that have it."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # untyped in Ray
    task = ray.remote(num_cpus=0, max_retries=0)(_run_node_checks)
    addresses = {}
    for node in alive:
        strategy = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        gpu = node["Resources"].get("GPU", 0) > 0
        reference = task.options(scheduling_strategy=strategy).remote(config.model_dump(), gpu)
        addresses[reference] = node["NodeManagerAddress"]
    done, late = ray.wait(list(addresses), num_returns=len(addresses), timeout=NODES_TIMEOUT_S)
    by_check: dict[str, list[tuple[str, CheckResult]]] = {}
    for reference in done:
        for result in _node_results(reference):
            by_check.setdefault(result.name, []).append((addresses[reference], result))
    merged = [_worst(name, results) for name, results in by_check.items()]
    if late:
        found = f"no response from {', '.join(addresses[reference] for reference in late)} within {NODES_TIMEOUT_S:g} s"
        hint = "see `ray status` and the log of the node"
        merged.append(CheckResult("nodes", "fail", found, f"{len(addresses)} nodes", hint))
    return [*merged, check_metrics_ports(alive)]


def check_metrics_ports(nodes: Sequence[Mapping[str, Any]]) -> CheckResult:
    """Check that Ray's metrics, which need no token, cannot be read from here.

    Args:
        nodes: entries of `ray.nodes()`.
    """
    ports = [(str(node["NodeManagerAddress"]), int(node.get("MetricsExportPort") or 0)) for node in nodes]
    with ThreadPoolExecutor(max(1, len(ports))) as pool:
        is_open = list(pool.map(_accepts_connections, ports))
    found = ", ".join(f"{host}:{port}" for (host, port), accepts in zip(ports, is_open, strict=True) if accepts)
    if not found:
        return CheckResult("metrics ports", "ok", "Ray's metrics cannot be read from here")
    hint = (
        "start Ray with RAY_enable_metrics_collection=0, or allow only your Prometheus to reach these ports "
        "(docs/tutorials/cluster.md, Ports)"
    )
    expected = "closed ports, since they need no token"
    return CheckResult("metrics ports", "warn", f"Ray's metrics can be read at {found}", expected, hint)


def _accepts_connections(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=_METRICS_TIMEOUT_S):
            return address[1] > 0
    except OSError:
        return False


def _node_results(reference: Any) -> list[CheckResult]:
    try:
        return list(ray.get(reference, timeout=NODES_TIMEOUT_S))
    except (ray.exceptions.RayError, ImportError) as error:
        hint = "install lakd-ray in the same version on every node"
        return [CheckResult("nodes", "fail", str(error).strip().splitlines()[-1], "lakd-ray on the node", hint)]


def _run_node_checks(experiment: dict[str, Any], gpu: bool) -> list[CheckResult]:
    config = Experiment.model_validate(experiment)
    visibility = [check_gpu_visibility()] if gpu else []
    if gpu and not os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides GPUs from tasks without one; reserving one could wait
    return [*visibility, *run_checks(host_checks.node_checks(config, gpu=gpu))]


def check_gpu_visibility() -> CheckResult:
    """Check in a task without a GPU that Ray hides the GPUs from it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return CheckResult("gpu visibility", "ok", "GPUs are hidden from processes that reserve none")
    return CheckResult(
        "gpu visibility",
        "warn",
        "processes that reserve no GPU see all of them, and libraries may take memory there",
        "hidden GPUs",
        "export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 before `ray start` on every node",
    )


def _worst(name: str, results: list[tuple[str, CheckResult]]) -> CheckResult:
    status = max((result.status for _, result in results), key=_SEVERITY.index)
    by_text: dict[str, list[str]] = {}
    for address, result in results:
        if result.status == status:
            by_text.setdefault(result.found, []).append(address)
    found = "; ".join(f"{text} ({_format_addresses(addresses)})" for text, addresses in by_text.items())
    first = next(result for _, result in results if result.status == status)
    return CheckResult(name, status, found, first.expected, first.hint)


def _format_addresses(addresses: list[str]) -> str:
    return ", ".join(addresses) if len(addresses) < 4 else f"{len(addresses)} nodes such as {addresses[0]}"


def capacity_check(config: Experiment, stages: Collection[str]) -> Check:
    """Return the check of CPUs and GPUs."""
    address = cluster_address(config.cluster)
    target = f"the cluster {address}" if address else "this machine"
    return Check("resources", lambda: check_capacity(config, stages), target)
