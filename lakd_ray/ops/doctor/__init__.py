"""Looks before anything is started: what would stop an experiment, all at once, and what to do about it.

`examine` is `lakd doctor`; `preflight` is the quick part of it, before the stages that train.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lakd_ray import cluster
from lakd_ray.config import Experiment
from lakd_ray.errors import ResourceError
from lakd_ray.ops.doctor import cluster_checks, host_checks, storage_checks
from lakd_ray.ops.doctor.check import Check, CheckResult, format_table, raise_on_failure, run_checks

__all__ = ["CheckResult", "checked_session", "format_table", "run_all_checks"]


def run_all_checks(config: Experiment) -> list[CheckResult]:
    """Everything, for the experiment's own stages. A named cluster is joined, and its nodes looked at."""
    stages = config.stages
    address = cluster.cluster_address(config)
    around = storage_checks.experiment_checks(config, stages, quick=False)
    if address is None:
        return run_checks([*host_checks.host_checks(config), cluster_checks.capacity_check(config, stages), *around])
    reached = run_checks([Check("token", lambda: cluster_checks.check_token(address)), _connection_check(address)])
    if any(result.status == "fail" for result in reached):
        return [*reached, *run_checks(around)]
    try:
        with cluster.experiment_session(config):
            return [
                *reached,
                *run_checks([cluster_checks.capacity_check(config, stages), *around]),
                *cluster_checks.check_nodes(config),
            ]
    except ResourceError as error:
        return [*reached, CheckResult("session", "fail", str(error)), *run_checks(around)]


def _connection_check(address: str) -> Check:
    return Check("cluster", lambda: cluster_checks.check_connection(address), address)


@contextmanager
def checked_session(config: Experiment, stages: Sequence[str]) -> Iterator[None]:
    """A Ray session in which these stages can begin: the quick checks come first.

    A machine is looked at before Ray starts on it and takes its share; a cluster that is named, once it is joined.

    Raises:
        ResourceError: a check failed, or the named cluster cannot be reached.
        StorageError: checks of places failed, and no others.
    """
    address = cluster.cluster_address(config)
    if address is None:
        _run_preflight([*host_checks.host_checks(config), *_common_checks(config, stages)])
    else:
        _run_preflight([Check("token", lambda: cluster_checks.check_token(address)), _connection_check(address)])
    with cluster.experiment_session(config):
        if address is not None:
            _run_preflight(_common_checks(config, stages))
        yield


def _common_checks(config: Experiment, stages: Sequence[str]) -> list[Check]:
    return [
        cluster_checks.capacity_check(config, stages),
        *storage_checks.experiment_checks(config, stages, quick=True),
    ]


def _run_preflight(checks: Sequence[Check]) -> None:
    raise_on_failure(run_checks(checks), storage_checks.STORAGE_CHECKS)
