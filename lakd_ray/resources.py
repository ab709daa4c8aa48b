"""CPUs and GPUs that the stages need at once, and the refusal of what a cluster could never give."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lakd_ray.config import Experiment
from lakd_ray.errors import ResourceError


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
