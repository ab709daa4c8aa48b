"""The log of a grid's runs: every event except epochs is stored in `<storage>/<experiment>/grid/events.jsonl`."""

import logging
import time
from datetime import UTC, datetime
from typing import Any

from lakd_ray import storage
from lakd_ray.launch.event_log import format_duration, format_epoch
from lakd_ray.launch.plan import GridPlan
from lakd_ray.launch.run_queue import TrainingEvent
from lakd_ray.runs.layout import EVENTS_FILE

logger = logging.getLogger(__name__)


class RunLog:
    """Stores the events of a grid's runs across restarts, and logs its progress.

    A run has at most one `finished` event, even if the grid is restarted. A run that finished while no driver was
    running gets its event from `reconcile`.
    """

    def __init__(self, plan: GridPlan) -> None:
        self.failed: dict[str, str] = {}
        """Reason of each run that failed permanently since this process started; the next start tries them again."""
        self._plan = plan
        self._location = storage.join(plan.config.stage_folder("grid"), EVENTS_FILE)
        self._events: list[dict[str, Any]] = storage.read_lines(self._location)
        self._trained_seconds = 0.0
        self._started = time.perf_counter()
        self.reconcile()

    def on_event(self, event: TrainingEvent) -> None:
        """Log an event, and store it unless it is the end of an epoch."""
        if event["event"] == "epoch":
            self._trained_seconds += event["line"]["audio_seconds"]
            logger.info(format_epoch(event["line"]))
            return
        if event["event"] == "failed":
            self.failed[event["run"]] = event["reason"]
        self._append(event)
        reason = f" ({event['reason'][:200]})" if "reason" in event else ""
        logger.info(f"[{self._progress()}] {event['run'] or event['group']} {event['event']}{reason}")

    def reconcile(self) -> None:
        """Add the `finished` events of runs that finished without a driver to store them."""
        finished = self._finished_runs()
        for task in self._plan.tasks:
            if task.run.id not in finished and task.is_finished:
                self._append({"event": "finished", "run": task.run.id, "noticed": "later"})

    def _finished_runs(self) -> set[str]:
        return {entry["run"] for entry in self._events if entry["event"] == "finished"}

    def _append(self, event: TrainingEvent) -> None:
        if event["event"] == "finished" and event["run"] in self._finished_runs():
            return
        self._events.append({"time": datetime.now(UTC).isoformat(timespec="seconds"), **event})
        storage.add_line(self._location, self._events[-1])

    def _progress(self) -> str:
        done = self._finished_runs()
        counts = f"{len(done)}/{len(self._plan.tasks)} runs, {len(self.failed)} failed"
        if not self._trained_seconds:
            return counts
        ended = done | set(self.failed)
        left = sum(seconds for run, seconds in self._plan.train_seconds.items() if run not in ended)
        elapsed = time.perf_counter() - self._started
        return f"{counts}, {format_duration(left * elapsed / self._trained_seconds)} left"
