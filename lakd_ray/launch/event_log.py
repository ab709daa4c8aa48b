"""Log the events of training: a line for every epoch and for every event of a run."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lakd_ray.launch.run_queue import TrainingEvent

_POLL_INTERVAL_S = 0.5

logger = logging.getLogger(__name__)


@contextmanager
def poll_events(
    drain_events: Callable[[], Sequence[TrainingEvent]], *handlers: Callable[[TrainingEvent], None]
) -> Iterator[None]:
    """Pass new events to every handler, in order, until the block ends.

    Args:
        drain_events: returns the events since its last call.
        handlers: called with each event in a separate thread.
    """
    stop = threading.Event()

    def dispatch() -> None:
        for event in drain_events():
            for handler in handlers:
                handler(event)

    def poll() -> None:
        while not stop.wait(_POLL_INTERVAL_S):
            dispatch()

    thread = threading.Thread(target=poll, name="poll events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        dispatch()


def log_event(event: TrainingEvent) -> None:
    """Log an event if it is of interest to the user."""
    run, reason = event["run"], event.get("reason", "")
    if event["event"] == "epoch":
        logger.info(format_epoch(event["line"]))
    elif event["event"] == "lost":
        logger.info(f"{run or event['group']}: a worker was lost, resuming from the last saved state ({reason[:200]})")
    elif event["event"] == "message":
        logger.info(f"{run}: {reason}" if run else reason)
    elif event["event"] == "failed":
        logger.info(f"{run}: FAILED, {reason}")


def format_epoch(epoch_metrics: dict[str, Any]) -> str:
    """Return the metrics of one epoch as a log line."""
    recall = " ".join(f"{code} {value:.2f}" for code, value in epoch_metrics["dev_recall"].items())
    return (
        f"{epoch_metrics['run']:<26} epoch {epoch_metrics['epoch']:>2}/{epoch_metrics['epochs']}  "
        f"loss {epoch_metrics['loss']:.3f}  dev UR {epoch_metrics['dev_UR']:.3f} ({recall})  "
        f"{epoch_metrics['audio_seconds_per_second']:.0f} audio-s/s  "
        f"{format_duration(epoch_metrics['seconds_left'])} left"
    )


def format_duration(seconds: float) -> str:
    """Format a duration as `m:ss`, or as `h:mm:ss` from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
