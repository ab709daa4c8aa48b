"""The nodes of a cluster: how many processes of a size they hold, and which jobs use them now."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lakd_ray.devices import processes_per_gpu

_STATE_TIMEOUT_S, _STATE_LIMIT = 10, 1000
_EPSILON = 1e-6

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """A node, or what is free of it."""

    cpus: float
    gpus: float = 0.0
    id: str = ""

    def capacity(self, bundle: "Bundle") -> int:
        """Return the number of processes of a size that the node holds at the same time."""
        counts = []
        if bundle.cpus:
            counts.append(int((self.cpus + _EPSILON) // bundle.cpus))
        if bundle.gpus:
            complete, rest = divmod(self.gpus + _EPSILON, 1)
            counts.append(int(complete) * processes_per_gpu(bundle.gpus) + int(rest >= bundle.gpus))
        return min(counts)


@dataclass(frozen=True)
class Bundle:
    """The resources that one process reserves, all on one node."""

    cpus: float
    gpus: float = 0.0

    def __str__(self) -> str:
        cpus = f"{self.cpus:.4g} CPU{'' if self.cpus == 1 else 's'}"
        return cpus + (f" and {self.gpus:.4g} GPU{'' if self.gpus <= 1 else 's'}" if self.gpus else "")

    def to_dict(self) -> dict[str, float]:
        """Return the resources with Ray's names."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def beside_driver() -> dict[str, Any]:
    """Return the options of an actor or a task without resources that must outlive the loss of other nodes."""
    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def capacity(bundle: Bundle, nodes: Iterable[Node]) -> int:
    """Return the number of processes of a size that the nodes hold; no process spans two nodes."""
    return sum(node.capacity(bundle) for node in nodes)


def all_nodes() -> list[Node]:
    """Return the nodes of the connected cluster with all of their resources."""
    return [_node(node, node["Resources"]) for node in _alive_nodes()]


def free_nodes() -> list[Node]:
    """Return the nodes of the connected cluster with the resources that nothing reserves at the moment."""
    free = available_resources_per_node()  # type: ignore[no-untyped-call]  # untyped in Ray
    return [_node(node, free.get(node["NodeID"], {})) for node in _alive_nodes()]


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # untyped in Ray


def _node(node: dict[str, Any], resources: dict[str, float]) -> Node:
    return Node(resources.get("CPU", 0), resources.get("GPU", 0), str(node["NodeID"]))


def format_nodes(nodes: Sequence[Node]) -> str:
    """Return the sizes of nodes in words, as in `3 CPUs and 1 GPU each on 2 nodes`."""
    kinds = Counter(str(Bundle(node.cpus, node.gpus)) for node in nodes)
    return ", ".join(
        f"{size}{' each' if count > 1 else ''} on {count} node{'' if count == 1 else 's'}"
        for size, count in kinds.most_common()
    )


def describe_users() -> str:
    """Return which jobs use the cluster's CPUs and GPUs, in words; empty if Ray's state API does not respond."""
    try:
        used, names = _used_by_job(), _job_names()
    except Exception as error:  # noqa: BLE001 -- the API raises various errors, and needs a dashboard
        logger.debug(f"no list of jobs: {error}")
        return ""
    own = ray.get_runtime_context().get_job_id()
    parts = []
    for job, amounts in sorted(used.items()):
        name = "this job" if job == own else f"job {job} ({names.get(job, 'unknown')})"
        if sum(amounts.values()):
            parts.append(f"{name}: " + ", ".join(f"{amounts[kind]:.4g} {kind}s" for kind in amounts if amounts[kind]))
    return "; ".join(parts)


def holds_resources() -> bool:
    """Return whether this job uses CPUs or GPUs now; true if Ray's state API does not respond."""
    try:
        used = _used_by_job()
    except Exception as error:  # noqa: BLE001 -- the API raises various errors, and needs a dashboard
        logger.debug(f"no list of jobs: {error}")
        return True
    return any(used.get(ray.get_runtime_context().get_job_id(), Counter()).values())


def _used_by_job() -> dict[str, Counter[str]]:
    """Return the CPUs and GPUs of each job: of its placement groups, and of its actors and tasks outside of them."""
    from ray.util import state

    options = _state_options()
    used: dict[str, Counter[str]] = {}

    def add(job: str, resources: dict[str, float]) -> None:
        counts = used.setdefault(job, Counter())
        for kind in ("CPU", "GPU"):
            counts[kind] += resources.get(kind, 0)  # type: ignore[assignment]  # a Counter also holds fractions

    for group in state.list_placement_groups(filters=[("state", "=", "CREATED")], **options):
        for bundle in group.bundles or ():
            add(str(group.creator_job_id), bundle.get("unit_resources", {}))
    for actor in state.list_actors(filters=[("state", "=", "ALIVE")], **options):
        if not actor.placement_group_id:
            add(str(actor.job_id), actor.required_resources or {})
    for task in state.list_tasks(filters=[("state", "=", "RUNNING")], **options):
        if task.type == "NORMAL_TASK" and not task.placement_group_id:
            add(str(task.job_id), task.required_resources or {})
    return used


def _job_names() -> dict[str, str]:
    from ray.util import state

    return {str(job.job_id): str(job.entrypoint)[:120] for job in state.list_jobs(**_state_options()) if job.job_id}


def _state_options() -> dict[str, Any]:
    return {
        "address": ray.get_runtime_context().gcs_address,  # there may be other clusters on this machine
        "limit": _STATE_LIMIT,
        "timeout": _STATE_TIMEOUT_S,
        "detail": True,
        "raise_on_missing_output": False,
    }
