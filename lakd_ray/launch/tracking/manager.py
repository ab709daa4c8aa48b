"""Pass every epoch to the trackers (TensorBoard, MLflow, Weights & Biases) without delaying training.

Each tracker has a separate thread, the only one that calls it. A tracker that fails is disabled with one warning; the
end of training waits at most `_CLOSE_TIMEOUT_S` for a tracker that hangs. Epochs that a tracker has missed, because it
or the driver was down, are taken from the run's metrics.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata

from lakd_ray.config import Experiment
from lakd_ray.errors import ConfigError
from lakd_ray.launch.run_queue import TrainingEvent
from lakd_ray.launch.tracking.base import EpochMetrics, RunStatus, Tracker
from lakd_ray.launch.tracking.mlflow import MlflowTracker
from lakd_ray.launch.tracking.tensorboard import TensorBoardTracker
from lakd_ray.launch.tracking.wandb import WandbTracker
from lakd_ray.launch.worker import TrainingTask
from lakd_ray.runs.state import RunState

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0
_PACKAGES = {"mlflow": ("mlflow-skinny", "mlflow"), "wandb": ("wandb",)}


def check_tracker_packages(config: Experiment) -> None:
    """Check that the packages of the configured trackers are installed.

    Raises:
        ConfigError: a package is missing.
    """
    for name, packages in _PACKAGES.items():
        if getattr(config.tracking, name) is not None and not any(map(_is_installed, packages)):
            raise ConfigError(
                f"`tracking.{name}` is set, but {name} is not installed here: install lakd-ray[{name}], or "
                f"set tracking.{name}: null"
            )


def build_trackers(config: Experiment) -> list[Tracker]:
    """Create the trackers of the configuration. They load their package and connect when the first run starts.

    Raises:
        ConfigError: a package is missing.
    """
    check_tracker_packages(config)
    trackers: list[Tracker] = [TensorBoardTracker()] if config.tracking.tensorboard else []
    if config.tracking.mlflow is not None:
        trackers.append(MlflowTracker(config.tracking.mlflow))
    if config.tracking.wandb is not None:
        trackers.append(WandbTracker(config.tracking.wandb))
    return trackers


@contextmanager
def track_runs(
    trackers: Sequence[Tracker], tasks: Mapping[str, TrainingTask]
) -> Iterator[Callable[[TrainingEvent], None]]:
    """Pass events to trackers until the block ends; yields the function that accepts an event and never blocks.

    Args:
        trackers: the trackers.
        tasks: the runs that are trained, by id.
    """
    threads = [_TrackerThread(tracker, tasks) for tracker in trackers]

    def track(event: TrainingEvent) -> None:
        for thread in threads:
            thread.put(event)

    try:
        yield track
    finally:
        for thread in threads:
            thread.put(None)
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        for thread in threads:
            thread.join(deadline)


class _TrackerThread:
    """One tracker's thread, its queue of events, and the last epoch of each started run."""

    def __init__(self, tracker: Tracker, tasks: Mapping[str, TrainingTask]) -> None:
        self._tracker, self._tasks = tracker, tasks
        self._events: queue.SimpleQueue[TrainingEvent | None] = queue.SimpleQueue()
        self._last_epochs: dict[str, int] = {}
        self._disabled = False
        self._thread = threading.Thread(target=self._run, name=f"track {tracker.name}", daemon=True)
        self._thread.start()

    def put(self, event: TrainingEvent | None) -> None:
        """Add an event to the queue; None ends the thread."""
        if not self._disabled:
            self._events.put(event)

    def join(self, deadline: float) -> None:
        """Wait until all events are handled or the deadline has passed; a thread that hangs ends with the process."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._disable(f"it has not handled all events {_CLOSE_TIMEOUT_S:.0f} s after the end of training")

    def _run(self) -> None:
        try:
            while (event := self._events.get()) is not None:
                self._handle(event)
            for run in list(self._last_epochs):
                self._end_run(run, "interrupted")
        except Exception as error:  # noqa: BLE001 -- no tracker error may end training
            self._disable(f"{type(error).__name__}: {error}")
            for run in list(self._last_epochs):
                with suppress(Exception):  # the tracker has failed already
                    self._end_run(run, "interrupted")

    def _disable(self, reason: str) -> None:
        if self._disabled:
            return
        self._disabled = True
        logger.warning(f"{self._tracker.name} is disabled, training continues without it ({reason[:300]})")

    def _handle(self, event: TrainingEvent) -> None:
        kind, run = event["event"], event["run"]
        if kind == "epoch":
            if run not in self._last_epochs:
                self._last_epochs[run] = self._tracker.start_run(self._tasks[run].config, self._tasks[run].run)
            for metrics in [*self._backfill(run, event["line"]), event["line"]]:
                if metrics["epoch"] > self._last_epochs[run]:  # an epoch whose state was lost is trained again
                    self._tracker.log_epoch(run, metrics)
                    self._last_epochs[run] = metrics["epoch"]
        elif kind in ("finished", "failed") and run in self._last_epochs:
            self._end_run(run, kind)

    def _backfill(self, run: str, epoch_metrics: EpochMetrics) -> list[EpochMetrics]:
        """Return the epochs between the last one that the tracker has and this one."""
        if epoch_metrics["epoch"] <= self._last_epochs[run] + 1:
            return []
        task = self._tasks[run]
        saved = RunState.read(task.run.folder(task.config)).metrics
        return [metrics for metrics in saved if metrics["epoch"] < epoch_metrics["epoch"]]

    def _end_run(self, run: str, status: RunStatus) -> None:
        del self._last_epochs[run]
        self._tracker.end_run(run, status)


def _is_installed(package: str) -> bool:
    """Look up the distribution, not the module: the folder `wandb` that runs leave behind would count as one."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
