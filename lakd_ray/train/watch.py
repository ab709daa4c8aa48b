"""What people see while runs train: a line for every epoch, and one whenever something happens to a run."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lakd_ray.train.queue import Event

_PAUSE_S = 0.5


@contextmanager
def following(news: Callable[[], Sequence[Event]], *tell: Callable[[Event], None]) -> Iterator[None]:
    """Pass news on to all who are told, in order, until the block ends."""
    stop = threading.Event()

    def pass_on() -> None:
        for event in news():
            for one in tell:
                one(event)

    def follow() -> None:
        while not stop.wait(_PAUSE_S):
            pass_on()

    thread = threading.Thread(target=follow, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        pass_on()


def show(event: Event) -> None:
    """Print what people want to see of an event."""
    if event["event"] == "epoch":
        print(format_line(event["line"]), flush=True)
    elif event["event"] == "lost":
        print(
            f"{event['run']}: a worker was lost, going on from the last saved state ({event['reason'][:200]})",
            flush=True,
        )
    elif event["event"] == "told":
        print(f"{event['run']}: {event['reason']}", flush=True)
    elif event["event"] == "failed":
        print(f"{event['run']}: FAILED, {event['reason']}", flush=True)


def format_line(line: dict[str, Any]) -> str:
    """One epoch for people."""
    recall = " ".join(f"{code} {value:.2f}" for code, value in line["dev_recall"].items())
    return (
        f"{line['run']:<26} epoch {line['epoch']:>2}/{line['epochs']}  loss {line['loss']:.3f}  "
        f"dev UR {line['dev_UR']:.3f} ({recall})  {line['audio_seconds_per_second']:.0f} audio-s/s  "
        f"{clock(line['seconds_left'])} left"
    )


def clock(seconds: float) -> str:
    """Hours, if there are any, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
