"""Tells trackers (TensorBoard, MLflow, Weights & Biases) of every epoch, beside training and never in its way.

Each tracker has a thread of its own, which alone calls it. One that fails is left out from then on, which is said once;
one that hangs is waited for at the end, but not for long. What a tracker has missed of a run that goes on, since it or
the driver was away, it is told from the run's metrics.
"""

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

_CLOSE_TIMEOUT_S = 30.0
_PACKAGES = {"mlflow": ("mlflow-skinny", "mlflow"), "wandb": ("wandb",)}


def check_tracker_packages(config: Experiment) -> None:
    """See that what the configured trackers need is installed.

    Raises:
        ConfigError: it is not.
    """
    for name, packages in _PACKAGES.items():
        if getattr(config.tracking, name) is not None and not any(map(_is_installed, packages)):
            raise ConfigError(
                f"`tracking.{name}` is set, but {name} is not installed where this runs: install lakd-ray[{name}], or "
                f"set tracking.{name}: null"
            )


def build_trackers(config: Experiment) -> list[Tracker]:
    """The configured trackers. They load and reach what they need when the first run is opened.

    Raises:
        ConfigError: one is not installed.
    """
    check_tracker_packages(config)
    found: list[Tracker] = [TensorBoardTracker()] if config.tracking.tensorboard else []
    if config.tracking.mlflow is not None:
        found.append(MlflowTracker(config.tracking.mlflow))
    if config.tracking.wandb is not None:
        found.append(WandbTracker(config.tracking.wandb))
    return found


@contextmanager
def track_runs(
    trackers: Sequence[Tracker], tasks: Mapping[str, TrainingTask]
) -> Iterator[Callable[[TrainingEvent], None]]:
    """Pass events on to trackers until the block ends: yields the function that takes an event, which never waits.

    Args:
        tasks: the runs that are trained, by id.
    """
    followers = [_TrackerThread(tracker, tasks) for tracker in trackers]

    def tell(event: TrainingEvent) -> None:
        for follower in followers:
            follower.put(event)

    try:
        yield tell
    finally:
        for follower in followers:
            follower.put(None)
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        for follower in followers:
            follower.join(deadline)


class _TrackerThread:
    """One tracker's thread, the events that it has still to take, and what it knows of each open run."""

    def __init__(self, tracker: Tracker, tasks: Mapping[str, TrainingTask]) -> None:
        self._tracker, self._tasks = tracker, tasks
        self._events: queue.SimpleQueue[TrainingEvent | None] = queue.SimpleQueue()
        self._last_epochs: dict[str, int] = {}
        self._disabled = False
        self._thread = threading.Thread(target=self._run, name=f"track {tracker.name}", daemon=True)
        self._thread.start()

    def put(self, event: TrainingEvent | None) -> None:
        """Something has happened; None: nothing more will."""
        if not self._disabled:
            self._events.put(event)

    def join(self, deadline: float) -> None:
        """Until all is taken, or it is too late; the thread of one that hangs ends with the process."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._disable(f"it has not taken everything {_CLOSE_TIMEOUT_S:.0f} s after the end of training")

    def _run(self) -> None:
        try:
            while (event := self._events.get()) is not None:
                self._handle(event)
            for run in list(self._last_epochs):
                self._end_run(run, "interrupted")
        except Exception as error:  # noqa: BLE001 -- whatever it is, training goes on
            self._disable(f"{type(error).__name__}: {error}")
            for run in list(self._last_epochs):
                with suppress(Exception):
                    self._end_run(run, "interrupted")

    def _disable(self, reason: str) -> None:
        if self._disabled:
            return
        self._disabled = True
        print(
            f"warning: {self._tracker.name} is left out from here on, training goes on without it ({reason[:300]})",
            flush=True,
        )

    def _handle(self, event: TrainingEvent) -> None:
        kind, run = event["event"], event["run"]
        if kind == "epoch":
            if run not in self._last_epochs:
                self._last_epochs[run] = self._tracker.start_run(self._tasks[run].config, self._tasks[run].run)
            for line in [*self._backfill(run, event["line"]), event["line"]]:
                if line["epoch"] > self._last_epochs[run]:  # an epoch is trained again where its state was lost
                    self._tracker.log_epoch(run, line)
                    self._last_epochs[run] = line["epoch"]
        elif kind in ("finished", "failed") and run in self._last_epochs:
            self._end_run(run, kind)

    def _backfill(self, run: str, epoch_metrics: EpochMetrics) -> list[EpochMetrics]:
        """Epochs between the last one that the tracker has and this one."""
        if epoch_metrics["epoch"] <= self._last_epochs[run] + 1:
            return []
        task = self._tasks[run]
        return [
            known
            for known in RunState.read(task.run.folder(task.config)).metrics
            if known["epoch"] < epoch_metrics["epoch"]
        ]

    def _end_run(self, run: str, status: RunStatus) -> None:
        del self._last_epochs[run]
        self._tracker.end_run(run, status)


def _is_installed(package: str) -> bool:
    """Not by looking for a module: the folder `wandb`, which it leaves behind, would be one."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
