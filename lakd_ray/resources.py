"""CPUs and GPUs that the stages need at once, and the refusal of what a cluster could never give."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lakd_ray.config import Experiment
from lakd_ray.errors import ResourceError


@dataclass(frozen=True)
class Need:
    """What must be there at once for a stage to begin."""

    what: str
    """In words, as a plural: `2 x 1 workers with ...`."""
    cpus: int
    gpus: int
    lower: str
    """Settings that lower it."""


def _training(config: Experiment) -> Need:
    train = config.train
    groups, workers = train.side_by_side, train.side_by_side * train.workers
    return Need(
        f"{groups} x {train.workers} workers with {_each(config)} and one CPU for reading data",
        workers * train.cpus_per_worker + 1,
        workers if train.gpu else 0,
        "train.workers, train.cpus_per_worker or train.side_by_side",
    )


def _search(config: Experiment) -> Need:
    """Trials wait for each other, so room for one is enough."""
    workers = config.tune.workers_per_trial
    of = f"{workers} workers with " if workers > 1 else ""
    return Need(
        f"trials of the search with {of}{_each(config)} and one CPU for reading data",
        workers * config.train.cpus_per_worker + 1,
        workers if config.train.gpu else 0,
        "tune.workers_per_trial or train.cpus_per_worker",
    )


def _serving(config: Experiment) -> Need:
    serve = config.serve
    what = f"serve.replicas={serve.replicas} with serve.cpus={serve.cpus}"
    return Need(what, serve.replicas * serve.cpus, 0, "serve.replicas or serve.cpus")


def _each(config: Experiment) -> str:
    cpus = config.train.cpus_per_worker
    return f"{cpus} CPU{'s' if cpus > 1 else ''}" + (" and one GPU each" if config.train.gpu else " each")


_NEEDS: dict[str, Callable[[Experiment], Need]] = {
    "teachers": _training,
    "distill": _training,
    "tune": _search,
    "serve": _serving,
}


def needs(config: Experiment, stages: Iterable[str]) -> list[Need]:
    """What the stages need, each kind once; preparing, evaluating and reporting make do with what there is."""
    return [of(config) for of in dict.fromkeys(_NEEDS[stage] for stage in stages if stage in _NEEDS)]


def shortages(config: Experiment, stages: Iterable[str], have: Mapping[str, float]) -> list[str]:
    """What the cluster cannot give, as sentences that say what to change.

    Args:
        have: all of the cluster's resources, as Ray names them.
    """
    told = []
    for need in needs(config, stages):
        for kind, needed in (("CPU", need.cpus), ("GPU", need.gpus)):
            if have.get(kind, 0) < needed:
                instead = "raise cluster.cpus" if kind == "CPU" else "set train.gpu: false"
                told.append(
                    f"the cluster has {have.get(kind, 0):g} {kind}s, but {need.what} need {needed}. "
                    f"Lower {need.lower}, {instead}, or add nodes."
                )
    return told


def refuse_shortage(config: Experiment, stages: Sequence[str], have: Mapping[str, float]) -> None:
    """Refuse at once what the cluster could never give; Ray would wait for ever.

    Raises:
        ResourceError: says what is short and what to change.
    """
    if short := shortages(config, stages, have):
        raise ResourceError("\n".join(short))
