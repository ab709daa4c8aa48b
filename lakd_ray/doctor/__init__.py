"""Looks before anything is started: what would stop an experiment, all at once, and what to do about it.

`examine` is `lakd doctor`; `preflight` is the quick part of it, before the stages that train.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lakd_ray import session
from lakd_ray.config import Experiment
from lakd_ray.doctor import cluster, machine, places
from lakd_ray.doctor.results import Check, Result, ask, refuse, table
from lakd_ray.errors import ResourceError

__all__ = ["Result", "examine", "ready_session", "table"]


def examine(config: Experiment) -> list[Result]:
    """Everything, for the experiment's own stages. A named cluster is joined, and its nodes looked at."""
    stages = config.stages
    address = session.joined(config)
    around = places.checks(config, stages, quick=False)
    if address is None:
        return ask([*machine.checks(config), cluster.check(config, stages), *around])
    reached = ask([Check("token", lambda: cluster.token(address)), _answers(address)])
    if any(result.status == "fail" for result in reached):
        return [*reached, *ask(around)]
    try:
        with session.session(config):
            return [*reached, *ask([cluster.check(config, stages), *around]), *cluster.nodes(config)]
    except ResourceError as error:
        return [*reached, Result("session", "fail", str(error)), *ask(around)]


def _answers(address: str) -> Check:
    return Check("cluster", lambda: cluster.answers(address), address)


@contextmanager
def ready_session(config: Experiment, stages: Sequence[str]) -> Iterator[None]:
    """A Ray session in which these stages can begin: the quick checks come first.

    A machine is looked at before Ray starts on it and takes its share; a cluster that is named, once it is joined.

    Raises:
        ResourceError: a check failed, or the named cluster cannot be reached.
        StorageError: checks of places failed, and no others.
    """
    address = session.joined(config)
    if address is None:
        _preflight([*machine.checks(config), *_common(config, stages)])
    else:
        _preflight([Check("token", lambda: cluster.token(address)), _answers(address)])
    with session.session(config):
        if address is not None:
            _preflight(_common(config, stages))
        yield


def _common(config: Experiment, stages: Sequence[str]) -> list[Check]:
    return [cluster.check(config, stages), *places.checks(config, stages, quick=True)]


def _preflight(checks: Sequence[Check]) -> None:
    refuse(ask(checks), places.STORAGE)
