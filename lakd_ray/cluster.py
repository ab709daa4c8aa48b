"""The Ray cluster of an experiment: connect to it or start a local one, and check that it has enough resources."""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from lakd_ray.config import ClusterConfig, Experiment
from lakd_ray.errors import ResourceError

# Environment of every worker, set before a local cluster starts, because its processes inherit it.
_WORKER_ENVIRONMENT = {
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",  # without it, the reports of other ranks can wait forever for a lost rank
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # interval of collecting reports: epochs can be shorter than its 2 s
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # hide GPUs from the processes that reserve none
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; stage tune logs a line for each trial
    "RAY_raylet_start_wait_time_s": "120",  # for a busy machine; it does not help if the raylet itself fails
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@contextmanager
def experiment_session(config: Experiment) -> Iterator[None]:
    """Connect to Ray for an experiment, and disconnect or shut down at the end.

    Raises:
        ResourceError: the named cluster cannot be reached, or a local one does not start.
    """
    with ray_session(config.cluster, local_cpus(config)):
        yield


@contextmanager
def ray_session(cluster: ClusterConfig, cpus: int) -> Iterator[None]:
    """Connect to Ray, and disconnect or shut down at the end; do nothing if Ray is initialized already.

    Args:
        cluster: the cluster to connect to; a local one is started if neither it nor RAY_ADDRESS has an address.
        cpus: logical CPUs of a local cluster.

    Raises:
        ResourceError: the named cluster cannot be reached, or a local one does not start.
    """
    if ray.is_initialized():
        yield
        return
    address = _configured_address(cluster)
    for name, value in {**_WORKER_ENVIRONMENT, **_driver_environment(address)}.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            ray.init(**_init_options(cluster, address, cpus))
    except (ConnectionError, ValueError, RuntimeError) as error:
        target = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise ResourceError(f"cannot start or reach {target}: {error}") from error
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.INFO if cluster.log_to_driver else logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def cluster_address(config: Experiment) -> str | None:
    """Return the address of the cluster that stages join, or None if they start a local one."""
    return _configured_address(config.cluster)


def _configured_address(cluster: ClusterConfig) -> str | None:
    return cluster.address or os.environ.get("RAY_ADDRESS")


def _driver_environment(address: str | None) -> dict[str, str]:
    if address is None:  # the watcher is one more process for each group, and the only node cannot be preempted
        return {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    return {"RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}  # shows training on the dashboard


def _init_options(cluster: ClusterConfig, address: str | None, cpus: int) -> dict[str, Any]:
    """Return the arguments of `ray.init`."""
    options: dict[str, Any] = {
        "log_to_driver": cluster.log_to_driver,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if address is not None:
        return options | {"address": address}
    options |= {"num_cpus": cpus, "include_dashboard": False, "address": "local"}
    if cluster.object_store_mb is not None:
        options["object_store_memory"] = cluster.object_store_mb * 1024**2
    return options


def local_cpus(config: Experiment) -> int:
    """Return the logical CPUs of a local cluster, enough for all workers, trials, replicas and data readers."""
    if config.cluster.cpus is not None:
        return config.cluster.cpus
    train = config.train
    workers = train.parallel_runs * train.workers * train.cpus_per_worker
    trials = config.tune.max_concurrent_trials * config.tune.workers_per_trial * train.cpus_per_worker
    serving = config.serve.replicas * config.serve.cpus + 1
    return max(os.cpu_count() or 1, 2 + max(workers, trials, serving) + 2)


@dataclass(frozen=True)
class ResourceRequest:
    """The resources that a stage needs at the same time before it can start."""

    description: str
    """The resources in words, as a plural: `2 x 1 workers with ...`."""
    cpus: int
    gpus: int
    settings_to_reduce: str
    """Keys of the settings that lower the request."""


def check_resources(config: Experiment, stages: Sequence[str], available: Mapping[str, float]) -> None:
    """Fail immediately if the cluster can never satisfy a request; Ray would wait forever.

    Args:
        config: the experiment.
        stages: the stages to run.
        available: all resources of the cluster, with Ray's names.

    Raises:
        ResourceError: a resource is missing; the message has the settings to change.
    """
    if missing := missing_resources(config, stages, available):
        raise ResourceError("\n".join(missing))


def missing_resources(config: Experiment, stages: Iterable[str], available: Mapping[str, float]) -> list[str]:
    """Return a sentence for each resource that the cluster lacks, with the settings to change.

    Args:
        config: the experiment.
        stages: the stages to run.
        available: all resources of the cluster, with Ray's names.
    """
    missing = []
    for request in resource_requests(config, stages):
        for kind, needed in (("CPU", request.cpus), ("GPU", request.gpus)):
            if available.get(kind, 0) < needed:
                alternative = "raise cluster.cpus" if kind == "CPU" else "set train.gpu: false"
                missing.append(
                    f"the cluster has {available.get(kind, 0):g} {kind}s, but {request.description} need {needed}. "
                    f"Lower {request.settings_to_reduce}, {alternative}, or add nodes."
                )
    return missing


def resource_requests(config: Experiment, stages: Iterable[str]) -> list[ResourceRequest]:
    """Return the distinct requests of some stages; prepare, evaluate and report adapt to the available resources."""
    builders = dict.fromkeys(_REQUEST_BUILDERS[stage] for stage in stages if stage in _REQUEST_BUILDERS)
    return [build(config) for build in builders]


def _training_request(config: Experiment) -> ResourceRequest:
    train = config.train
    groups, workers = train.parallel_runs, train.parallel_runs * train.workers
    return ResourceRequest(
        f"{groups} x {train.workers} workers with {_format_worker_resources(config)} and one CPU for reading data",
        workers * train.cpus_per_worker + 1,
        workers if train.gpu else 0,
        "train.workers, train.cpus_per_worker or train.parallel_runs",
    )


def _tuning_request(config: Experiment) -> ResourceRequest:
    """Return the request of one trial: the others wait for it."""
    workers = config.tune.workers_per_trial
    group = f"{workers} workers with " if workers > 1 else ""
    return ResourceRequest(
        f"trials of the search with {group}{_format_worker_resources(config)} and one CPU for reading data",
        workers * config.train.cpus_per_worker + 1,
        workers if config.train.gpu else 0,
        "tune.workers_per_trial or train.cpus_per_worker",
    )


def _serving_request(config: Experiment) -> ResourceRequest:
    serve = config.serve
    return ResourceRequest(
        f"serve.replicas={serve.replicas} with serve.cpus={serve.cpus}",
        serve.replicas * serve.cpus,
        0,
        "serve.replicas or serve.cpus",
    )


def _format_worker_resources(config: Experiment) -> str:
    cpus = config.train.cpus_per_worker
    return f"{cpus} CPU{'s' if cpus > 1 else ''}" + (" and one GPU each" if config.train.gpu else " each")


_REQUEST_BUILDERS: dict[str, Callable[[Experiment], ResourceRequest]] = {
    "teachers": _training_request,
    "distill": _training_request,
    "tune": _tuning_request,
    "serve": _serving_request,
}
