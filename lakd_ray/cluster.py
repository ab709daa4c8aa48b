"""The Ray cluster of an experiment: connect to it or start a local one, and check that it has enough resources."""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from lakd_ray import environment, ray_token, signals
from lakd_ray.config import ClusterConfig, Experiment
from lakd_ray.devices import count_visible_gpus, processes_per_gpu
from lakd_ray.errors import ResourceError

logger = logging.getLogger(__name__)

_DISK_STORE_BYTES = 10**9  # of an object store on disk
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


# Ray serves its metrics on all addresses without the token. Nothing reads those of a cluster that ends with a command.
# The two servers that the first setting leaves cannot bind an invalid port, which Ray logs in its session folder.
NO_METRICS_PORTS = {
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
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
    with environment.prepared():
        yield from _new_session(cluster, _configured_address(cluster), cpus)


def _new_session(cluster: ClusterConfig, address: str | None, cpus: int) -> Iterator[None]:
    if address is None:
        _check_temporary_folder()
        ray_token.prepare_token()
    else:
        environment.bypass_proxies(address)
    for name, value in {**_WORKER_ENVIRONMENT, **_driver_environment(address)}.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings(), signals.shielded_children():
            warnings.simplefilter("ignore", FutureWarning)
            # In the driver alone: its handler aborts the process on SIGTERM. Ray reads the variable when imported.
            ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
            ray.init(**_init_options(cluster, address, cpus))
    except Exception as error:
        target = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise ResourceError(f"cannot start or reach {target}: {error}") from error
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.INFO if cluster.log_to_driver else logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _check_temporary_folder() -> None:
    """Reject a folder for Ray's sessions that is too long for the paths of sockets.

    Raises:
        ResourceError: it is too long.
    """
    folder = environment.temporary_folder()
    if len(os.fsencode(folder)) > environment.MAX_TEMPORARY_PATH:
        raise ResourceError(
            f"the temporary folder {folder} has {len(os.fsencode(folder))} bytes, and the paths of Ray's sockets allow "
            f"{environment.MAX_TEMPORARY_PATH}: set TMPDIR or RAY_TMPDIR to a shorter one"
        )


def cluster_address(config: Experiment) -> str | None:
    """Return the address of the cluster that stages join, or None if they start a local one."""
    return _configured_address(config.cluster)


def _configured_address(cluster: ClusterConfig) -> str | None:
    return cluster.address or os.environ.get("RAY_ADDRESS")


def _driver_environment(address: str | None) -> dict[str, str]:
    if address is None:  # the watcher is one more process for each group, and the only node cannot be preempted
        return {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", **NO_METRICS_PORTS}
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
    if not Path("/dev/shm").is_dir():  # Ray would fail; the disk is slower
        options |= {"_plasma_directory": environment.temporary_folder(), "object_store_memory": _DISK_STORE_BYTES}
    # Ray itself would also count GPUs whose driver is too old for torch.
    options |= {"num_cpus": cpus, "num_gpus": count_visible_gpus(), "include_dashboard": False, "address": "local"}
    if cluster.object_store_mb is not None:
        options["object_store_memory"] = cluster.object_store_mb * 1024**2
    return options


def local_cpus(config: Experiment) -> int:
    """Return the logical CPUs of a local cluster, enough for all workers, trials, replicas and data readers."""
    if config.cluster.cpus is not None:
        return config.cluster.cpus
    train, tune = with_local_device(config).train, config.tune
    counts = (train.parallel_runs * train.workers, tune.max_concurrent_trials * tune.workers_per_trial)
    training = (workers * train.cpus_per_worker + train.total_reader_cpus(workers) for workers in counts)
    serving = _num_replicas(config) * config.serve.cpus + 2
    return max(os.cpu_count() or 1, max(*training, serving) + 3)


def max_concurrent_trials(config: Experiment) -> int:
    """Return the number of trials of the search that the connected cluster holds, with their readers; at least one."""
    available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # untyped in Ray
    for trials in range(config.tune.max_concurrent_trials, 1, -1):
        request = _request_of_trials(config, trials)
        if request.cpus <= available.get("CPU", 0) and request.gpus <= available.get("GPU", 0):
            return trials
    return 1


def with_known_device(config: Experiment, available: Mapping[str, float]) -> Experiment:
    """Return the experiment with `train.gpu: auto` replaced by whether the GPUs suffice for all workers.

    It is true as well if the precision or the optimizer needs GPUs; `check_resources` then rejects a cluster without.

    Args:
        config: the experiment; returned as it is unless `train.gpu` is `auto`.
        available: all resources of the cluster, with Ray's names.
    """
    if config.train.gpu != "auto":
        return config
    return _with_gpu(config, gpu=_needs_gpu(config) or available.get("GPU", 0) >= _count_wanted_gpus(config))


def with_local_device(config: Experiment) -> Experiment:
    """Return the experiment with `train.gpu: auto` replaced by what a local cluster on this machine would have."""
    return with_known_device(config, {"GPU": count_visible_gpus()})


def resolve_device(config: Experiment) -> Experiment:
    """Replace an automatic `train.gpu` by what the connected cluster has, and log it; each command calls this once."""
    if config.train.gpu != "auto":
        return config
    available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # untyped in Ray
    resolved = with_known_device(config, available)
    found, wanted = available.get("GPU", 0), _count_wanted_gpus(config)
    if resolved.train.gpu:
        logger.info(f"training on GPUs: the workers need {wanted}, the cluster has {found:g}")
    elif not found:
        logger.info("training on CPUs: the cluster has no GPU")
    else:
        logger.info(
            f"training on CPUs: the workers need {wanted} GPUs, the cluster has {found:g}. To use GPUs, lower "
            "train.workers or train.parallel_runs; runs with one worker can share a GPU (train.gpus_per_worker: 0.5)"
        )
    return resolved


def _needs_gpu(config: Experiment) -> bool:
    return config.train.precision == "fp16" or config.train.offload_optimizer


def _count_wanted_gpus(config: Experiment) -> int:
    """Return the GPUs that training and the trials of the search need if they use GPUs."""
    wanted = _with_gpu(config, gpu=True)
    builders = [_training_request, *([_tuning_request] if "tune" in config.stages else [])]
    return max(build(wanted).gpus for build in builders)


def _with_gpu(config: Experiment, *, gpu: bool) -> Experiment:
    return config.model_copy(update={"train": config.train.model_copy(update={"gpu": gpu})})


@dataclass(frozen=True)
class ResourceRequest:
    """The resources that a stage needs at the same time before it can start."""

    description: str
    """The resources in words, as a plural: `2 x 1 workers with ...`."""
    cpus: int
    gpus: int
    settings_to_reduce: str
    """Keys of the settings that lower the request."""
    without_gpus: str = "set train.gpu: false"
    """The setting with which the stage needs no GPU."""


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
    config = with_known_device(config, available)
    missing = []
    for request in resource_requests(config, stages):
        for kind, needed in (("CPU", request.cpus), ("GPU", request.gpus)):
            if available.get(kind, 0) < needed:
                alternative = request.without_gpus if kind == "GPU" else "raise cluster.cpus"
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
    workers = train.parallel_runs * train.workers
    return _request_of_workers(
        config,
        workers,
        f"{train.parallel_runs} x {train.workers} workers",
        "train.workers, train.cpus_per_worker or train.parallel_runs",
    )


def _tuning_request(config: Experiment) -> ResourceRequest:
    """Return the request of one trial: the others wait for it."""
    return _request_of_trials(config, 1)


def _request_of_trials(config: Experiment, trials: int) -> ResourceRequest:
    workers = config.tune.workers_per_trial
    return _request_of_workers(
        config,
        trials * workers,
        "trials of the search" + (f" with {workers} workers" if workers > 1 else ""),
        "tune.workers_per_trial or train.cpus_per_worker",
    )


def _request_of_workers(config: Experiment, workers: int, subject: str, settings_to_reduce: str) -> ResourceRequest:
    """Return the request of training workers and of the tasks that read their data."""
    train = config.train
    each = _count(train.cpus_per_worker, "CPU") + (f" and {train.gpus_per_worker:g} GPU" if train.reserved_gpus else "")
    reading = _count(train.total_reader_cpus(workers), "CPU")
    gpus = math.ceil(workers / processes_per_gpu(train.gpus_per_worker)) if train.reserved_gpus else 0
    return ResourceRequest(
        f"{subject} with {each} each and {reading} for reading data",
        workers * train.cpus_per_worker + train.total_reader_cpus(workers),
        gpus,
        settings_to_reduce,
        "set train.gpu: false" + (" and train.precision: bf16" if train.precision == "fp16" else ""),
    )


def _serving_request(config: Experiment) -> ResourceRequest:
    serve = config.serve
    replicas = _num_replicas(config)
    return ResourceRequest(
        f"serve.replicas={serve.replicas}"
        + (f" and serve.canary.replicas={serve.canary.replicas}" if serve.canary else "")
        + f" with serve.cpus={serve.cpus}"
        + (f" and serve.gpus={serve.gpus:g}" if serve.gpus else ""),
        replicas * serve.cpus,
        math.ceil(replicas / processes_per_gpu(serve.gpus)) if serve.gpus else 0,
        "serve.replicas, serve.cpus or serve.gpus" if serve.gpus else "serve.replicas or serve.cpus",
        "set serve.gpus: 0",
    )


def _num_replicas(config: Experiment) -> int:
    """Return the replicas of the model and of its canary, before any autoscaling."""
    return config.serve.replicas + (config.serve.canary.replicas if config.serve.canary else 0)


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


_REQUEST_BUILDERS: dict[str, Callable[[Experiment], ResourceRequest]] = {
    "teachers": _training_request,
    "distill": _training_request,
    "tune": _tuning_request,
    "serve": _serving_request,
}
