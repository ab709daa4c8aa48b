"""Connect to the Ray cluster of an experiment, or start a local one."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from lakd_ray import environment, ray_token, scratch, signals
from lakd_ray.cluster.connection import check_connection
from lakd_ray.cluster.nodes import Node
from lakd_ray.cluster.resources import count_replicas, training_request, trials_request, with_local_device
from lakd_ray.config import ClusterConfig, Experiment
from lakd_ray.devices import count_visible_gpus
from lakd_ray.errors import ResourceError

_DISK_STORE_BYTES = 10**9  # of an object store on disk
# Environment of every worker, set before a local cluster starts, because its processes inherit it.
_WORKER_ENVIRONMENT = {
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
        yield from _new_session(cluster, cluster_address(cluster), cpus)


def _new_session(cluster: ClusterConfig, address: str | None, cpus: int) -> Iterator[None]:
    if address is None:
        _check_temporary_folder()
        ray_token.prepare_token()
    else:
        check_connection(address, cluster.connect_s)
        environment.bypass_proxies(address)
    for name, value in {**_WORKER_ENVIRONMENT, **_driver_environment(address)}.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings(), signals.preserved_handlers(), signals.shielded_children():
            warnings.simplefilter("ignore", FutureWarning)
            # In the driver alone: its handler aborts the process on SIGTERM. Ray reads the variable when imported.
            ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
            context: Any = ray.init(**_init_options(cluster, address, cpus))
    except Exception as error:
        target = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise ResourceError(f"cannot start or reach {target}: {error}") from error
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.INFO if cluster.log_to_driver else logging.ERROR)
    try:
        if address is None:
            Path(context.address_info["session_dir"], scratch.RAY_SESSION_MARK).touch()
        scratch.remove_leftovers()
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


def cluster_address(cluster: ClusterConfig) -> str | None:
    """Return the address of the cluster that stages join, or None if they start a local one."""
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


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
    config = with_local_device(config)
    training, trials = training_request(config), trials_request(config, config.tune.max_concurrent_trials)
    serving = count_replicas(config) * config.serve.cpus + 2
    return max(os.cpu_count() or 1, max(training.cpus, trials.cpus, serving) + 3)


def local_nodes(config: Experiment) -> list[Node]:
    """Return the node that a local cluster of the experiment would have."""
    return [Node(local_cpus(config), count_visible_gpus())]
