"""Show the progress of long loops on standard error: a bar on a terminal, plain lines in a file or a job log."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_INTERVAL_S = 5.0
"""Seconds between two lines where standard error is not a terminal."""


class ProgressBar(Protocol):
    """A counter that is shown to the user while it grows."""

    def update(self, n: int = 1) -> None:
        """Add `n` finished items to the counter."""


@contextmanager
def progress_bar(total: int | None, description: str, unit: str = "", initial: int = 0) -> Iterator[ProgressBar]:
    """Show the progress of a loop until the `with` block ends.

    A terminal shows one bar that is redrawn in place. A file or a log receives plain lines without control characters:
    the first and the last state, and at most one line every `LINE_INTERVAL_S` seconds in between. Nothing is shown
    where the level of the logger `lakd_ray` is above INFO, as with `lakd -q`.

    Args:
        total: number of items; None if it is not known.
        description: text in front of the bar, such as `prepare demo`.
        unit: singular name of an item, such as `clip`, for the rate.
        initial: number of items that were finished before; the rate does not count them.
    """
    if logging.getLogger("lakd_ray").level > logging.INFO:
        yield _HiddenBar()
    elif sys.stderr.isatty():
        yield from _rich_bar(total, description, unit, initial)
    else:
        bar = _LineBar(total, description, unit, initial)
        try:
            yield bar
        finally:
            bar.close()


class _HiddenBar:
    def update(self, n: int = 1) -> None:
        """Show nothing."""


class _LineBar:
    """Writes the progress as plain lines."""

    def __init__(self, total: int | None, description: str, unit: str, initial: int) -> None:
        self._total, self._description, self._unit, self._initial = total, description, unit, initial
        self._count = self._written_count = initial
        self._lock = threading.Lock()
        self._start = self._written_at = time.monotonic()
        self._write()

    def update(self, n: int = 1) -> None:
        """Add `n` finished items, and write a line if the last one is old enough."""
        with self._lock:
            self._count += n
            if time.monotonic() - self._written_at >= LINE_INTERVAL_S:
                self._write()

    def close(self) -> None:
        """Write the last state, unless the last line shows it already."""
        with self._lock:
            if self._count != self._written_count:
                self._write()

    def _write(self) -> None:
        elapsed = time.monotonic() - self._start
        print(f"{self._description}: {self._format_state(elapsed)}", file=sys.stderr, flush=True)
        self._written_at, self._written_count = time.monotonic(), self._count

    def _format_state(self, elapsed: float) -> str:
        state = f"{self._count}{f' {self._unit}' if self._unit else ''}"
        if self._total is not None:
            percent = 100 * self._count // self._total if self._total else 100
            state = f"{self._count}/{self._total} ({percent}%)"
        rate = format_rate(self._count - self._initial, elapsed, self._unit)
        if not rate:
            return state
        if self._total is None or self._count >= self._total:
            return f"{state}, {rate}, {format_clock(elapsed)} elapsed"
        remaining = (self._total - self._count) * elapsed / (self._count - self._initial)
        return f"{state}, {rate}, {format_clock(remaining)} left"


def _rich_bar(total: int | None, description: str, unit: str, initial: int) -> Iterator[ProgressBar]:
    from rich.console import Console  # only a terminal needs it
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """The rate and the time that is left, or the time taken once all items are finished."""

        def render(self, task: Task) -> Text:
            """Return the text for the present state."""
            elapsed = task.elapsed or 0.0
            clock = f"{format_clock(elapsed)} elapsed"
            if task.total is not None and not task.finished:
                clock = "" if task.time_remaining is None else f"{format_clock(task.time_remaining)} left"
            rate = format_rate(int(task.completed) - initial, elapsed, unit)
            return Text(", ".join(filter(None, (rate, clock))))

    class Bar:
        """Passes the updates to rich."""

        def update(self, n: int = 1) -> None:
            """Add `n` finished items."""
            progress.advance(task, n)

    count = "{task.completed}" if total is None else "{task.completed}/{task.total}"
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(show_speed=False),
        TextColumn(count, markup=False),
        RateColumn(),
    )
    # soft_wrap: lines that are printed above the bar are not broken at the width of the terminal
    console = Console(stderr=True, soft_wrap=True)
    with Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(description, total=total, completed=initial)
        yield Bar()


def format_rate(count: int, elapsed: float, unit: str) -> str:
    """Return the rate as `54.3 clip/s`, or `4.0 s/clip` for slow ones; an empty string before the first item."""
    if count <= 0 or elapsed <= 0:
        return ""
    rate = count / elapsed
    return f"{rate:.1f} {unit or 'item'}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit or 'item'}"


def format_clock(seconds: float) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
