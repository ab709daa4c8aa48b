"""Wait until a cluster has room for the processes of a stage, with log lines and a deadline."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lakd_ray import signals
from lakd_ray.cluster.nodes import (
    Bundle,
    all_nodes,
    capacity,
    describe_users,
    format_nodes,
    free_nodes,
    holds_resources,
)
from lakd_ray.cluster.session import cluster_address
from lakd_ray.config import ClusterConfig
from lakd_ray.errors import ResourceError

_POLL_S = 1.0
_GRACE_S = 5.0  # processes that end release their resources a little later
_LOG_INTERVAL_S = 60.0
_WATCH_S = 5.0
_JOIN_S = 2.0

logger = logging.getLogger(__name__)


class RoomWait:
    """A wait for resources that other jobs use: a line at its start and once a minute, and an error at the deadline.

    Args:
        needed: the awaited resources in words, a plural: `teachers: 2 workers with 1 CPU each`.
        cluster: has the deadline.
        log: called with each line.
        grace_s: seconds until the first line; None: the default.
    """

    def __init__(
        self,
        needed: str,
        cluster: ClusterConfig,
        log: Callable[[str], None] = logger.info,
        *,
        grace_s: float | None = None,
    ) -> None:
        self._needed, self._limit_s, self._log = needed, cluster.wait_s, log
        self._started = time.monotonic()
        self._next_line_s = min(_GRACE_S if grace_s is None else grace_s, cluster.wait_s)

    def report(self) -> None:
        """Log a line if it is time for one; call this regularly while the resources are not free.

        Raises:
            ResourceError: the deadline has passed.
        """
        elapsed = time.monotonic() - self._started
        if elapsed < min(self._next_line_s, self._limit_s):
            return
        users = describe_users()
        situation = f"free are {format_nodes(free_nodes())}" + (f"; in use by {users}" if users else "")
        if elapsed >= self._limit_s:
            raise ResourceError(
                f"{self._needed} did not find free resources within {self._limit_s:g} s (cluster.wait_s): {situation}. "
                "End the other jobs or wait for their end, add nodes, request less, or raise cluster.wait_s; then run "
                "the same command again."
            )
        self._log(
            f"waiting for free resources: {self._needed}; {situation}; {elapsed:.0f} s so far, at most "
            f"{self._limit_s:g} s (cluster.wait_s)"
        )
        self._next_line_s = elapsed + _LOG_INTERVAL_S


def wait_for_room(
    needed: str, bundle: Bundle, count: int, cluster: ClusterConfig, log: Callable[[str], None] = logger.info
) -> None:
    """Wait until the cluster has room for a number of processes at the same time.

    Args:
        needed: the processes in words, a plural.
        bundle: what each of them reserves.
        count: their number.
        cluster: has the deadline.
        log: called with each line.

    Raises:
        ResourceError: the nodes cannot hold them even without other jobs, or the deadline has passed.
    """
    wait = RoomWait(needed, cluster, log)
    while capacity(bundle, free_nodes()) < count:
        if capacity(bundle, nodes := all_nodes()) < count:
            raise ResourceError(
                f"the cluster has {format_nodes(nodes)}, too little for {needed}: it needs {count} x {bundle}, each on "
                "one node"
            )
        wait.report()
        time.sleep(_POLL_S)


@contextmanager
def watched_room(needed: str, bundle: Bundle, cluster: ClusterConfig) -> Iterator[None]:
    """Wait for room as `wait_for_room` does, then report if other jobs take it from the tasks within the block.

    A task that ends gives its resources back, and a different job may take them before the next one starts. Ray Data
    would wait for them silently.

    Args:
        needed: the tasks in words, a plural.
        bundle: what each of them reserves.
        cluster: the cluster, and the deadline.

    Raises:
        ResourceError: as of `wait_for_room`, or no task could run until the deadline.
    """
    wait_for_room(needed, bundle, 1, cluster)
    if cluster_address(cluster) is None or threading.current_thread() is not threading.main_thread():
        yield  # nothing else uses a local cluster
        return
    watch = _Watch(needed, bundle, cluster)
    watch.start()
    try:
        yield
    except BaseException as error:
        if watch.error is not None:
            raise watch.error from error
        raise
    finally:
        watch.stop()


class _Watch:
    """A thread that reports while a job has no resources and the cluster none for it, and ends it at the deadline."""

    def __init__(self, needed: str, bundle: Bundle, cluster: ClusterConfig) -> None:
        self.error: ResourceError | None = None
        """The error of the deadline, once it has passed."""
        self._needed, self._bundle, self._cluster = needed, bundle, cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="room", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that waits for a response of the cluster interrupts nothing any more."""
        self._stop.set()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        wait: RoomWait | None = None
        while not self._stop.wait(_WATCH_S):
            if self._can_run():
                wait = None
                continue
            wait = wait or RoomWait(self._needed, self._cluster)
            try:
                wait.report()
            except ResourceError as error:
                self.error = error
                if not self._stop.is_set():
                    signals.interrupt_main_thread()
                return

    def _can_run(self) -> bool:
        try:
            return capacity(self._bundle, free_nodes()) > 0 or holds_resources()
        except Exception:  # noqa: BLE001 -- the cluster is gone, which the stage reports
            return True


@contextmanager
def reserved(needed: str, bundle: Bundle, count: int, cluster: ClusterConfig) -> Iterator[dict[str, Any]]:
    """Reserve resources for a number of tasks, all at once; yields the options of these tasks.

    Raises:
        ResourceError: as of `wait_for_room`.
    """
    wait_for_room(needed, bundle, count, cluster)
    group = placement_group([bundle.to_dict()] * count)
    try:
        wait = RoomWait(needed, cluster)  # a different job may have been faster
        while not group.wait(_POLL_S):
            wait.report()
        yield {
            "num_cpus": bundle.cpus,
            "num_gpus": bundle.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group),
        }
    finally:
        if ray.is_initialized():
            remove_placement_group(group)
