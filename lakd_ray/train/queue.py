"""Which run a worker group trains next. No Ray: `lakd_ray.train.run` keeps it in an actor that all groups ask.

A run is handed out when all that it needs is done, to whichever group asks first. What a lost group was training goes
back, and what needs a run that has failed for good is given up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Event = dict[str, Any]  # {"event": ..., "run": ..., more}


@dataclass
class Queue:
    """Runs in the order in which they are wanted.

    Args:
        needs: for each run, the runs that must be done before; those that are not in the queue are done already.
    """

    needs: Mapping[str, Sequence[str]]
    _left: list[str] = field(init=False)
    _taken: dict[str, str] = field(default_factory=dict)  # by group
    _given_up: set[str] = field(default_factory=set)
    _events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._left = list(self.needs)

    def take(self, group: str) -> tuple[Literal["run", "wait", "end"], str]:
        """What a group is to do: train a run, ask again later, or end."""
        open_ = {*self._left, *self._taken.values()} | self._given_up
        for run in self._left:
            if not open_ & set(self.needs[run]):
                self._left.remove(run)
                self._taken[group] = run
                self.tell({"event": "started", "run": run, "group": group})
                return "run", run
        return ("wait", "") if self._left else ("end", "")

    def done(self, group: str) -> None:
        """A group has finished its run."""
        self.tell({"event": "finished", "run": self._taken.pop(group), "group": group})

    def give_back(self, group: str) -> str | None:
        """A group is lost: the run that it was training is the next one again. Returns it."""
        run = self._taken.pop(group, None)
        if run is not None:
            self._left.insert(0, run)
        return run

    def give_up(self, run: str, reason: str) -> None:
        """A run that was given back has failed for good, and with it what needs it."""
        self._left.remove(run)
        self._given_up.add(run)
        self.tell({"event": "failed", "run": run, "reason": reason})
        for other in [other for other in self._left if run in self.needs[other]]:
            self.give_up(other, f"needs {run}, which failed")

    def close(self) -> None:
        """Hand out nothing more."""
        self._left = []

    def tell(self, event: Event) -> None:
        """Something that the driver is to know."""
        self._events.append(event)

    def news(self) -> list[Event]:
        """What has happened since this was last asked."""
        news, self._events = self._events, []
        return news

    def left(self) -> int:
        """Number of runs that are waiting or being trained."""
        return len(self._left) + len(self._taken)
