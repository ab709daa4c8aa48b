"""Check the environment of an experiment, and report everything that would stop it and how to fix it.

`run_all_checks` is the command `lakd doctor`; `checked_session` runs the quick checks before stages that train.

    check              a check, its result, running checks concurrently
    host_checks        versions, compiler, GPU, memory, disk of a machine
    storage_checks     storage, corpora, port and keys of the endpoint
    pretrained_checks  pretrained encoders and external teachers
    cluster_checks     Ray: token, connection, resources, nodes
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from lakd_ray import cluster
from lakd_ray.config import Experiment
from lakd_ray.errors import ResourceError
from lakd_ray.ops.doctor import cluster_checks, host_checks, storage_checks
from lakd_ray.ops.doctor.check import Check, CheckResult, format_table, raise_on_failure, run_checks

__all__ = ["CheckResult", "checked_session", "format_table", "run_all_checks"]


def run_all_checks(config: Experiment) -> list[CheckResult]:
    """Run all checks for the stages of the experiment; connect to its cluster, if it has one, and check the nodes."""
    stages = config.stages
    address = cluster.cluster_address(config.cluster)
    storage_and_models = storage_checks.experiment_checks(config, stages, quick=False)
    if address is None:
        return run_checks(
            [
                *host_checks.host_checks(config),
                Check("token", cluster_checks.check_token_file),
                cluster_checks.capacity_check(config, stages),
                *storage_and_models,
            ]
        )
    connection = run_checks(
        [Check("token", lambda: cluster_checks.check_token(address)), _connection_check(config, address)]
    )
    if any(result.status == "fail" for result in connection):
        return [*connection, *run_checks(storage_and_models)]
    try:
        with cluster.experiment_session(config):
            return [
                *connection,
                *run_checks([cluster_checks.capacity_check(config, stages), *storage_and_models]),
                *cluster_checks.check_nodes(config),
            ]
    except ResourceError as error:
        return [*connection, CheckResult("session", "fail", str(error)), *run_checks(storage_and_models)]


def _connection_check(config: Experiment, address: str) -> Check:
    timeout_s = config.cluster.connect_s
    return Check("cluster", partial(cluster_checks.check_connection, address, timeout_s), address, timeout_s + 2)


@contextmanager
def checked_session(config: Experiment, stages: Sequence[str]) -> Iterator[None]:
    """Run the quick checks for these stages and open a Ray session.

    The local machine is checked before Ray starts on it and takes resources; a cluster is checked after connecting.

    Raises:
        ResourceError: a check failed, or the cluster cannot be reached.
        StorageError: only storage checks failed.
    """
    address = cluster.cluster_address(config.cluster)
    if address is None:
        _run_preflight([*host_checks.host_checks(config), *_common_checks(config, stages)])
    else:
        _run_preflight(
            [Check("token", lambda: cluster_checks.check_token(address)), _connection_check(config, address)]
        )
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
