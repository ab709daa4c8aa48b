"""Prints a line for every epoch of some runs while they train, read from their metrics files."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lakd_ray import storage
from lakd_ray.errors import StorageError
from lakd_ray.train.state import METRICS

_LOCAL_SECONDS = 0.5
_REMOTE_SECONDS = 5.0


@contextmanager
def watching(folders: Sequence[str]) -> Iterator[None]:
    """Print new epochs of the runs in these folders until the block ends."""
    shown = {folder: len(_read(folder)) for folder in folders}
    stop = threading.Event()
    pause = _REMOTE_SECONDS if any(map(storage.is_remote, folders)) else _LOCAL_SECONDS

    def follow() -> None:
        while not stop.wait(pause):
            show(shown)

    thread = threading.Thread(target=follow, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        show(shown)


def show(shown: dict[str, int]) -> None:
    """Print the lines that have come since, and count them as shown."""
    for folder, known in shown.items():
        lines = _read(folder)
        for line in lines[known:]:
            print(format_line(line), flush=True)
        shown[folder] = max(known, len(lines))


def format_line(line: dict[str, Any]) -> str:
    """One epoch for people."""
    recall = " ".join(f"{code} {value:.2f}" for code, value in line["dev_recall"].items())
    return (
        f"{line['run']:<20} epoch {line['epoch']:>2}/{line['epochs']}  loss {line['loss']:.3f}  "
        f"dev UR {line['dev_UR']:.3f} ({recall})  {line['audio_seconds_per_second']:.0f} audio-s/s  "
        f"{clock(line['seconds_left'])} left"
    )


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _read(folder: str) -> list[dict[str, Any]]:
    location = storage.join(folder, METRICS)
    try:
        if not storage.exists(location):
            return []
        return [json.loads(line) for line in storage.read_bytes(location).splitlines()]
    except StorageError:
        return []  # replaced while being read; the next look finds it
