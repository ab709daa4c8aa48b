"""The resources that the stages of an experiment need, and whether a cluster has them."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from lakd_ray.cluster.nodes import Bundle, Node, all_nodes, capacity, format_nodes
from lakd_ray.config import Experiment
from lakd_ray.devices import count_visible_gpus, processes_per_gpu
from lakd_ray.errors import ResourceError

logger = logging.getLogger(__name__)


def max_concurrent_trials(config: Experiment) -> int:
    """Return the number of trials of the search that the connected cluster holds, with their readers; at least one."""
    nodes = all_nodes()
    for trials in range(config.tune.max_concurrent_trials, 1, -1):
        request = trials_request(config, trials)
        if capacity(request.bundle, nodes) >= request.count:
            return trials
    return 1


def with_known_device(config: Experiment, nodes: Iterable[Node]) -> Experiment:
    """Return the experiment with `train.gpu: auto` replaced by whether the GPUs suffice for all workers.

    It is true as well if the precision or the optimizer needs GPUs; `check_resources` then rejects a cluster without.

    Args:
        config: the experiment; returned as it is unless `train.gpu` is `auto`.
        nodes: all nodes of the cluster.
    """
    if config.train.gpu != "auto":
        return config
    found = sum(node.gpus for node in nodes)
    return _with_gpu(config, gpu=_needs_gpu(config) or found >= _count_wanted_gpus(config))


def with_local_device(config: Experiment) -> Experiment:
    """Return the experiment with `train.gpu: auto` replaced by what a local cluster on this machine would have."""
    return with_known_device(config, [Node(0, count_visible_gpus())])


def resolve_device(config: Experiment) -> Experiment:
    """Replace an automatic `train.gpu` by what the connected cluster has, and log it; each command calls this once."""
    if config.train.gpu != "auto":
        return config
    nodes = all_nodes()
    resolved = with_known_device(config, nodes)
    found, wanted = sum(node.gpus for node in nodes), _count_wanted_gpus(config)
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
    builders = [training_request, *([_one_trial_request] if "tune" in config.stages else [])]
    return max(build(wanted).gpus for build in builders)


def _with_gpu(config: Experiment, *, gpu: bool) -> Experiment:
    return config.model_copy(update={"train": config.train.model_copy(update={"gpu": gpu})})


@dataclass(frozen=True)
class ResourceRequest:
    """The processes that a stage needs at the same time before it can start."""

    description: str
    """The processes in words, as a plural: `2 x 1 workers with ...`."""
    bundle: Bundle
    """The resources of each process, on one node."""
    count: int
    """Number of processes."""
    settings_to_reduce: str
    """Keys of the settings that lower the request."""
    without_gpus: str = "set train.gpu: false"
    """The setting with which the stage needs no GPU."""

    @property
    def cpus(self) -> int:
        """The CPUs of all processes together."""
        return math.ceil(round(self.bundle.cpus * self.count, 2))

    @property
    def gpus(self) -> int:
        """The GPUs of all processes together, which may share them."""
        return math.ceil(self.count / processes_per_gpu(self.bundle.gpus)) if self.bundle.gpus else 0


def check_resources(config: Experiment, stages: Iterable[str], nodes: Sequence[Node]) -> None:
    """Fail immediately if the cluster can never satisfy a request; Ray would wait forever.

    Args:
        config: the experiment.
        stages: the stages to run.
        nodes: all nodes of the cluster.

    Raises:
        ResourceError: a resource is missing; the message has the settings to change.
    """
    if missing := missing_resources(config, stages, nodes):
        raise ResourceError("\n".join(missing))


def missing_resources(config: Experiment, stages: Iterable[str], nodes: Sequence[Node]) -> list[str]:
    """Return a sentence for each resource that the cluster or each of its nodes lacks, with the settings to change.

    Args:
        config: the experiment.
        stages: the stages to run.
        nodes: all nodes of the cluster.
    """
    config = with_known_device(config, nodes)
    found = {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}
    missing = []
    for request in resource_requests(config, stages):
        lacking = [
            (kind, needed)
            for kind, needed in (("CPU", request.cpus), ("GPU", request.gpus))
            if found[kind] + 0.01 < needed
        ]
        for kind, needed in lacking:
            alternative = request.without_gpus if kind == "GPU" else "raise cluster.cpus"
            missing.append(
                f"the cluster has {found[kind]:g} {kind}s, but {request.description} need {needed}. "
                f"Lower {request.settings_to_reduce}, {alternative}, or add nodes."
            )
        room = capacity(request.bundle, nodes)
        if not lacking and room < request.count:
            missing.append(
                f"the cluster has {format_nodes(nodes)}, but {request.description} need {request.count} x "
                f"{request.bundle}, each on one node: there is room for {room}. Lower {request.settings_to_reduce}, or "
                "add larger nodes."
            )
    return missing


def resource_requests(config: Experiment, stages: Iterable[str]) -> list[ResourceRequest]:
    """Return the distinct requests of some stages; report needs none."""
    builders = dict.fromkeys(_REQUEST_BUILDERS[stage] for stage in stages if stage in _REQUEST_BUILDERS)
    return [build(config) for build in builders]


def preparation_request(_: Experiment) -> ResourceRequest:
    """Return the request of preparing corpora: one task; more are used if there are CPUs for them."""
    return ResourceRequest("tasks that decode recordings", Bundle(1), 1, "the load of the cluster")


def training_request(config: Experiment) -> ResourceRequest:
    """Return the request of all worker groups that train at the same time, including reading their data."""
    train = config.train
    workers = train.parallel_runs * train.workers
    return _request_of_workers(
        config,
        workers,
        f"{train.parallel_runs} x {train.workers} workers",
        "train.workers, train.cpus_per_worker or train.parallel_runs",
    )


def evaluation_request(config: Experiment) -> ResourceRequest:
    """Return the request of one process that predicts; up to train.workers are used if there is room for them."""
    train = config.train
    return ResourceRequest(
        f"processes that predict with {_count(train.cpus_per_worker, 'CPU')} each and those for reading data",
        Bundle(train.reserved_cpus(train.workers), train.reserved_gpus),
        1,
        "train.cpus_per_worker or train.reader_cpus",
    )


def _one_trial_request(config: Experiment) -> ResourceRequest:
    """Return the request of one trial: the others wait for it."""
    return trials_request(config, 1)


def trials_request(config: Experiment, trials: int) -> ResourceRequest:
    """Return the request of a number of trials at the same time, including reading their data."""
    workers = config.tune.workers_per_trial
    # a trial with several workers trains in a group of its own, with its own readers
    request = _request_of_workers(
        config,
        trials if workers == 1 else workers,
        "trials of the search" + (f" with {workers} workers" if workers > 1 else ""),
        "tune.workers_per_trial or train.cpus_per_worker",
    )
    return replace(request, count=trials * workers)


def _request_of_workers(config: Experiment, workers: int, subject: str, settings_to_reduce: str) -> ResourceRequest:
    """Return the request of training workers, each with its share of the CPUs that read data.

    The share belongs to the worker's reservation, so that a group never waits for readers while it holds its workers.
    """
    train = config.train
    each = _count(train.cpus_per_worker, "CPU") + (f" and {train.gpus_per_worker:g} GPU" if train.reserved_gpus else "")
    reading = _count(train.total_reader_cpus(workers), "CPU")
    return ResourceRequest(
        f"{subject} with {each} each and {reading} for reading data",
        Bundle(train.reserved_cpus(workers), train.reserved_gpus),
        workers,
        settings_to_reduce,
        "set train.gpu: false" + (" and train.precision: bf16" if train.precision == "fp16" else ""),
    )


def serving_request(config: Experiment) -> ResourceRequest:
    """Return the request of all replicas of the endpoint."""
    serve = config.serve
    return ResourceRequest(
        f"serve.replicas={serve.replicas}"
        + (f" and serve.canary.replicas={serve.canary.replicas}" if serve.canary else "")
        + f" with serve.cpus={serve.cpus}"
        + (f" and serve.gpus={serve.gpus:g}" if serve.gpus else ""),
        Bundle(serve.cpus, serve.gpus),
        count_replicas(config),
        "serve.replicas, serve.cpus or serve.gpus" if serve.gpus else "serve.replicas or serve.cpus",
        "set serve.gpus: 0",
    )


def count_replicas(config: Experiment) -> int:
    """Return the replicas of the model and of its canary, before any autoscaling."""
    return config.serve.replicas + (config.serve.canary.replicas if config.serve.canary else 0)


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


_REQUEST_BUILDERS: dict[str, Callable[[Experiment], ResourceRequest]] = {
    "prepare": preparation_request,
    "teachers": training_request,
    "distill": training_request,
    "tune": _one_trial_request,
    "evaluate": evaluation_request,
    "serve": serving_request,
}
