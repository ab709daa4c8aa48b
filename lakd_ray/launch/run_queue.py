"""Which run a worker group trains next. No Ray: `lakd_ray.launch.driver` keeps it in an actor that all groups ask.

A run is handed out when all that it needs is done, to whichever group asks first. What a lost group was training goes
back, and what needs a run that has failed for good is given up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

TrainingEvent = dict[str, Any]  # {"event": ..., "run": ..., more}


@dataclass
class RunQueue:
    """Runs in the order in which they are wanted.

    Args:
        needs: for each run, the runs that must be done before; those that are not in the queue are done already.
    """

    dependencies: Mapping[str, Sequence[str]]
    _pending: list[str] = field(init=False)
    _running: dict[str, str] = field(default_factory=dict)  # by group
    _abandoned: set[str] = field(default_factory=set)
    _events: list[TrainingEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pending = list(self.dependencies)

    def next_run(self, group: str) -> tuple[Literal["run", "wait", "end"], str]:
        """What a group is to do: train a run, ask again later, or end."""
        open_ = {*self._pending, *self._running.values()} | self._abandoned
        for run in self._pending:
            if not open_ & set(self.dependencies[run]):
                self._pending.remove(run)
                self._running[group] = run
                self.publish({"event": "started", "run": run, "group": group})
                return "run", run
        return ("wait", "") if self._pending else ("end", "")

    def mark_done(self, group: str) -> None:
        """A group has finished its run."""
        self.publish({"event": "finished", "run": self._running.pop(group), "group": group})

    def requeue(self, group: str) -> str | None:
        """A group is lost: the run that it was training is the next one again. Returns it."""
        run = self._running.pop(group, None)
        if run is not None:
            self._pending.insert(0, run)
        return run

    def abandon(self, run: str, reason: str) -> None:
        """A run that was given back has failed for good, and with it what needs it."""
        self._pending.remove(run)
        self._abandoned.add(run)
        self.publish({"event": "failed", "run": run, "reason": reason})
        for other in [other for other in self._pending if run in self.dependencies[other]]:
            self.abandon(other, f"needs {run}, which failed")

    def close(self) -> None:
        """Hand out nothing more."""
        self._pending = []

    def publish(self, event: TrainingEvent) -> None:
        """Something that the driver is to know."""
        self._events.append(event)

    def drain_events(self) -> list[TrainingEvent]:
        """What has happened since this was last asked."""
        news, self._events = self._events, []
        return news

    def remaining(self) -> int:
        """Number of runs that are waiting or being trained."""
        return len(self._pending) + len(self._running)
