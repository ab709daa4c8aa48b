"""The Ray session in which stages run: joins a cluster that is named, starts one here otherwise."""

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

# Environment of every worker. Set before a cluster starts here, so that its processes inherit it.
_WORKER_ENVIRONMENT = {
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",  # without it a lost rank can hang the others' report for ever
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how often reports are collected: epochs can be shorter than its 2 s
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default, which it otherwise warns about
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; the tune stage prints a line for each trial
    "RAY_raylet_start_wait_time_s": "120",  # helps a busy machine, unless the raylet itself gives up
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@contextmanager
def experiment_session(config: Experiment) -> Iterator[None]:
    """Connect to Ray for an experiment, and shut down what was started here.

    Raises:
        ResourceError: the named cluster cannot be reached.
    """
    with ray_session(config.cluster, local_cpus(config)):
        yield


@contextmanager
def ray_session(cluster: ClusterConfig, cpus: int) -> Iterator[None]:
    """Connect to Ray, and shut down what was started here.

    Args:
        cpus: logical CPUs of a cluster started here.

    Raises:
        ResourceError: the named cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = _configured_address(cluster)
    options: dict[str, Any] = {
        "log_to_driver": cluster.log_to_driver,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if address is None:
        options |= {"num_cpus": cpus, "include_dashboard": False, "address": "local"}
        if cluster.object_store_mb is not None:
            options["object_store_memory"] = cluster.object_store_mb * 1024**2
        # a watcher process for a whole group, but nobody takes this machine's one node away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    else:
        options["address"] = address
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # fills the dashboard's page for training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise ResourceError(f"cannot start or reach {where}: {error}") from error
    for chatty in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(chatty).setLevel(logging.INFO if cluster.log_to_driver else logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def cluster_address(config: Experiment) -> str | None:
    """Address of the cluster that stages join; None where one is started here, and ends with them."""
    return _configured_address(config.cluster)


def _configured_address(cluster: ClusterConfig) -> str | None:
    return cluster.address or os.environ.get("RAY_ADDRESS")


def local_cpus(config: Experiment) -> int:
    """Logical CPUs of a cluster started on this machine: all workers, trials and readers have room."""
    if config.cluster.cpus is not None:
        return config.cluster.cpus
    train = config.train
    workers = train.parallel_runs * train.workers * train.cpus_per_worker
    trials = config.tune.max_concurrent_trials * config.tune.workers_per_trial * train.cpus_per_worker
    serving = config.serve.replicas * config.serve.cpus + 1
    return max(os.cpu_count() or 1, 2 + max(workers, trials, serving) + 2)


@dataclass(frozen=True)
class ResourceRequest:
    """What must be there at once for a stage to begin."""

    description: str
    """In words, as a plural: `2 x 1 workers with ...`."""
    cpus: int
    gpus: int
    settings_to_reduce: str
    """Settings that lower it."""


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
    """Trials wait for each other, so room for one is enough."""
    workers = config.tune.workers_per_trial
    of = f"{workers} workers with " if workers > 1 else ""
    return ResourceRequest(
        f"trials of the search with {of}{_format_worker_resources(config)} and one CPU for reading data",
        workers * config.train.cpus_per_worker + 1,
        workers if config.train.gpu else 0,
        "tune.workers_per_trial or train.cpus_per_worker",
    )


def _serving_request(config: Experiment) -> ResourceRequest:
    serve = config.serve
    what = f"serve.replicas={serve.replicas} with serve.cpus={serve.cpus}"
    return ResourceRequest(what, serve.replicas * serve.cpus, 0, "serve.replicas or serve.cpus")


def _format_worker_resources(config: Experiment) -> str:
    cpus = config.train.cpus_per_worker
    return f"{cpus} CPU{'s' if cpus > 1 else ''}" + (" and one GPU each" if config.train.gpu else " each")


_STAGE_REQUESTS: dict[str, Callable[[Experiment], ResourceRequest]] = {
    "teachers": _training_request,
    "distill": _training_request,
    "tune": _tuning_request,
    "serve": _serving_request,
}


def resource_requests(config: Experiment, stages: Iterable[str]) -> list[ResourceRequest]:
    """What the stages need, each kind once; preparing, evaluating and reporting make do with what there is."""
    return [of(config) for of in dict.fromkeys(_STAGE_REQUESTS[stage] for stage in stages if stage in _STAGE_REQUESTS)]


def missing_resources(config: Experiment, stages: Iterable[str], available: Mapping[str, float]) -> list[str]:
    """What the cluster cannot give, as sentences that say what to change.

    Args:
        have: all of the cluster's resources, as Ray names them.
    """
    told = []
    for need in resource_requests(config, stages):
        for kind, needed in (("CPU", need.cpus), ("GPU", need.gpus)):
            if available.get(kind, 0) < needed:
                instead = "raise cluster.cpus" if kind == "CPU" else "set train.gpu: false"
                told.append(
                    f"the cluster has {available.get(kind, 0):g} {kind}s, but {need.description} need {needed}. "
                    f"Lower {need.settings_to_reduce}, {instead}, or add nodes."
                )
    return told


def check_resources(config: Experiment, stages: Sequence[str], available: Mapping[str, float]) -> None:
    """Refuse at once what the cluster could never give; Ray would wait for ever.

    Raises:
        ResourceError: says what is short and what to change.
    """
    if short := missing_resources(config, stages, available):
        raise ResourceError("\n".join(short))
