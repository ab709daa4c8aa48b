"""What people see while runs train: a line for every epoch, and one whenever something happens to a run."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lakd_ray.launch.run_queue import TrainingEvent

_POLL_INTERVAL_S = 0.5


@contextmanager
def poll_events(
    drain_events: Callable[[], Sequence[TrainingEvent]], *handlers: Callable[[TrainingEvent], None]
) -> Iterator[None]:
    """Pass news on to all who are told, in order, until the block ends."""
    stop = threading.Event()

    def pass_on() -> None:
        for event in drain_events():
            for one in handlers:
                one(event)

    def follow() -> None:
        while not stop.wait(_POLL_INTERVAL_S):
            pass_on()

    thread = threading.Thread(target=follow, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        pass_on()


def print_event(event: TrainingEvent) -> None:
    """Print what people want to see of an event."""
    if event["event"] == "epoch":
        print(format_epoch(event["line"]), flush=True)
    elif event["event"] == "lost":
        print(
            f"{event['run']}: a worker was lost, going on from the last saved state ({event['reason'][:200]})",
            flush=True,
        )
    elif event["event"] == "message":
        print(f"{event['run']}: {event['reason']}", flush=True)
    elif event["event"] == "failed":
        print(f"{event['run']}: FAILED, {event['reason']}", flush=True)


def format_epoch(epoch_metrics: dict[str, Any]) -> str:
    """One epoch for people."""
    recall = " ".join(f"{code} {value:.2f}" for code, value in epoch_metrics["dev_recall"].items())
    return (
        f"{epoch_metrics['run']:<26} epoch {epoch_metrics['epoch']:>2}/{epoch_metrics['epochs']}  loss {epoch_metrics['loss']:.3f}  "
        f"dev UR {epoch_metrics['dev_UR']:.3f} ({recall})  {epoch_metrics['audio_seconds_per_second']:.0f} audio-s/s  "
        f"{format_duration(epoch_metrics['seconds_left'])} left"
    )


def format_duration(seconds: float) -> str:
    """Hours, if there are any, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
