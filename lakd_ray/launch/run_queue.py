"""The queue of runs that worker groups train. No Ray: `lakd_ray.launch.driver` runs it in an actor.

A run is available once its dependencies are done; the first group that requests a run gets it. The run of a lost group
returns to the queue, and a run is abandoned if one of its dependencies has failed permanently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

TrainingEvent = dict[str, Any]
"""`{"event": NAME, "run": RUN_ID}` and, depending on the event, `group`, `line` (metrics of an epoch) or `reason`.

RUN_ID is None if a group is lost before its first run.

Events: `started`, `epoch`, `message`, `lost` (a worker), `finished`, `failed`.
"""


@dataclass
class RunQueue:
    """Runs in the order of their priority.

    Args:
        dependencies: for each run, the runs that must be done before; those that are not in the queue are done already.
    """

    dependencies: Mapping[str, Sequence[str]]
    _pending: list[str] = field(init=False)
    _running: dict[str, str] = field(default_factory=dict)  # by group
    _abandoned: set[str] = field(default_factory=set)
    _events: list[TrainingEvent] = field(default_factory=list)
    _stopping: bool = False
    _stoppable: set[str] = field(default_factory=set)  # groups that train and look for a request to stop

    def __post_init__(self) -> None:
        self._pending = list(self.dependencies)

    def next_run(self, group: str) -> tuple[Literal["run", "wait", "end"], str]:
        """Return a group's next action: train a run, wait and call again, or end."""
        self._stoppable.discard(group)
        unfinished = {*self._pending, *self._running.values()} | self._abandoned
        for run in self._pending:
            if not unfinished & set(self.dependencies[run]):
                self._pending.remove(run)
                self._running[group] = run
                self.publish({"event": "started", "run": run, "group": group})
                return "run", run
        return ("wait", "") if self._pending else ("end", "")

    def mark_done(self, group: str) -> None:
        """Record that a group has finished its run."""
        self.publish({"event": "finished", "run": self._running.pop(group), "group": group})

    def requeue(self, group: str) -> str | None:
        """Put the run of a lost group in front of the queue, and return its id; None if the group had no run."""
        self._stoppable.discard(group)
        run = self._running.pop(group, None)
        if run is not None:
            self._pending.insert(0, run)
        return run

    def abandon(self, run: str, reason: str) -> None:
        """Remove a run that has failed permanently, and the runs that need it; call `requeue` first."""
        self._pending.remove(run)
        self._abandoned.add(run)
        self.publish({"event": "failed", "run": run, "reason": reason})
        for other in [other for other in self._pending if run in self.dependencies[other]]:
            self.abandon(other, f"needs {run}, which failed")

    def close(self) -> None:
        """Remove all pending runs, so that every group ends after its current run."""
        self._pending = []

    def stop(self) -> list[str]:
        """Request that all groups save their states and end; return the runs whose groups will do so soon."""
        self._stopping, self._pending = True, []
        return self.stoppable_runs()

    def stoppable_runs(self) -> list[str]:
        """Return the runs in training whose groups have not ended since the request to stop."""
        return [run for group, run in self._running.items() if group in self._stoppable]

    def should_stop(self, group: str) -> bool:
        """Return whether a group is requested to save its state and end; groups in training call this regularly."""
        self._stoppable.add(group)
        return self._stopping

    def mark_stopped(self, group: str, position: str) -> None:
        """Record that a group has saved the state of its run and ends."""
        self._stoppable.discard(group)
        self.publish({"event": "message", "run": self._running[group], "reason": f"saved at {position}"})

    def publish(self, event: TrainingEvent) -> None:
        """Add an event for the driver."""
        self._events.append(event)

    def drain_events(self) -> list[TrainingEvent]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def is_training(self) -> bool:
        """Return whether a group trains a run at the moment."""
        return bool(self._running)

    def remaining(self) -> int:
        """Return the number of runs that are pending or being trained."""
        return len(self._pending) + len(self._running)
