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
from lakd_ray.train.queue import Event
from lakd_ray.train.state import State
from lakd_ray.train.trackers.base import Line, Outcome, Tracker
from lakd_ray.train.trackers.mlflow import Mlflow
from lakd_ray.train.trackers.tensorboard import TensorBoard
from lakd_ray.train.trackers.wandb import Wandb
from lakd_ray.train.worker import Task

_PATIENCE_S = 30.0
_PACKAGES = {"mlflow": ("mlflow-skinny", "mlflow"), "wandb": ("wandb",)}


def check(config: Experiment) -> None:
    """See that what the configured trackers need is installed.

    Raises:
        ConfigError: it is not.
    """
    for name, packages in _PACKAGES.items():
        if getattr(config.tracking, name) is not None and not any(map(_installed, packages)):
            raise ConfigError(
                f"`tracking.{name}` is set, but {name} is not installed where this runs: install lakd-ray[{name}], or "
                f"set tracking.{name}: null"
            )


def trackers(config: Experiment) -> list[Tracker]:
    """The configured trackers. They load and reach what they need when the first run is opened.

    Raises:
        ConfigError: one is not installed.
    """
    check(config)
    found: list[Tracker] = [TensorBoard()] if config.tracking.tensorboard else []
    if config.tracking.mlflow is not None:
        found.append(Mlflow(config.tracking.mlflow))
    if config.tracking.wandb is not None:
        found.append(Wandb(config.tracking.wandb))
    return found


@contextmanager
def tracking(some: Sequence[Tracker], tasks: Mapping[str, Task]) -> Iterator[Callable[[Event], None]]:
    """Pass events on to trackers until the block ends: yields the function that takes an event, which never waits.

    Args:
        tasks: the runs that are trained, by id.
    """
    followers = [_Follower(tracker, tasks) for tracker in some]

    def tell(event: Event) -> None:
        for follower in followers:
            follower.tell(event)

    try:
        yield tell
    finally:
        for follower in followers:
            follower.tell(None)
        deadline = time.monotonic() + _PATIENCE_S
        for follower in followers:
            follower.wait(deadline)


class _Follower:
    """One tracker's thread, the events that it has still to take, and what it knows of each open run."""

    def __init__(self, tracker: Tracker, tasks: Mapping[str, Task]) -> None:
        self._tracker, self._tasks = tracker, tasks
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._last: dict[str, int] = {}
        self._out = False
        self._thread = threading.Thread(target=self._follow, name=f"track {tracker.name}", daemon=True)
        self._thread.start()

    def tell(self, event: Event | None) -> None:
        """Something has happened; None: nothing more will."""
        if not self._out:
            self._events.put(event)

    def wait(self, deadline: float) -> None:
        """Until all is taken, or it is too late; the thread of one that hangs ends with the process."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._leave(f"it has not taken everything {_PATIENCE_S:.0f} s after the end of training")

    def _follow(self) -> None:
        try:
            while (event := self._events.get()) is not None:
                self._take(event)
            for run in list(self._last):
                self._close(run, "interrupted")
        except Exception as error:  # noqa: BLE001 -- whatever it is, training goes on
            self._leave(f"{type(error).__name__}: {error}")
            for run in list(self._last):
                with suppress(Exception):
                    self._close(run, "interrupted")

    def _leave(self, reason: str) -> None:
        if self._out:
            return
        self._out = True
        print(
            f"warning: {self._tracker.name} is left out from here on, training goes on without it ({reason[:300]})",
            flush=True,
        )

    def _take(self, event: Event) -> None:
        kind, run = event["event"], event["run"]
        if kind == "epoch":
            if run not in self._last:
                self._last[run] = self._tracker.open(self._tasks[run].config, self._tasks[run].run)
            for line in [*self._missed(run, event["line"]), event["line"]]:
                if line["epoch"] > self._last[run]:  # an epoch is trained again where its state was lost
                    self._tracker.epoch(run, line)
                    self._last[run] = line["epoch"]
        elif kind in ("finished", "failed") and run in self._last:
            self._close(run, kind)

    def _missed(self, run: str, line: Line) -> list[Line]:
        """Epochs between the last one that the tracker has and this one."""
        if line["epoch"] <= self._last[run] + 1:
            return []
        task = self._tasks[run]
        return [known for known in State.read(task.run.folder(task.config)).metrics if known["epoch"] < line["epoch"]]

    def _close(self, run: str, outcome: Outcome) -> None:
        del self._last[run]
        self._tracker.close(run, outcome)


def _installed(package: str) -> bool:
    """Not by looking for a module: the folder `wandb`, which it leaves behind, would be one."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
