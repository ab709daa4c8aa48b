"""Figures of a benchmark: stored as JSON while it runs, and printed as one Markdown table.

A section of the benchmark runs in its own process and stores every figure as soon as it is measured, so that a crash or
a timeout loses only what was not measured yet. This module needs neither torch nor Ray.
"""

import json
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

TAIL_LINES = 12  # of a failed section's log, shown below the table


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Format the median and the range of values."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


@dataclass(frozen=True)
class Figure:
    """A measured quantity, with one value for each repeat.

    Attributes:
        name: what was measured, with the unit at the end: `endpoint, audio-s/s`.
        values: one value for each repeat; empty if the measurement failed.
        digits: decimals in the table.
        aim: the value to reach; None if there is no aim.
        at_most: the aim is an upper limit.
        memory_gib: peak memory of the GPU during the measurement, without a GPU of the process.
        failure: the reason why there is no value.
    """

    name: str
    values: list[float] = field(default_factory=list)
    digits: int = 1
    aim: float | None = None
    at_most: bool = False
    memory_gib: float | None = None
    failure: str = ""

    @property
    def row(self) -> str:
        """The figure as a row of the table."""
        result = spread(self.values, self.digits) if self.values else f"failed: {_one_line(self.failure)}"
        memory = "" if self.memory_gib is None else f"{self.memory_gib:.1f}"
        return f"| {self.name} | {result} | {self._verdict} | {memory} |"

    @property
    def _verdict(self) -> str:
        if self.aim is None:
            return ""
        bound = f"at {'most' if self.at_most else 'least'} {self.aim:g}"
        if not self.values:
            return bound
        result = median(self.values)
        met = result <= self.aim if self.at_most else result >= self.aim
        return f"{bound}, {'met' if met else '**missed**'}"


class Recorder:
    """Store the figures of one section in a JSON file, after each figure.

    Args:
        file: the file to write.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._figures: dict[str, Figure] = {}
        self._facts: dict[str, Any] = {}

    def add(self, name: str, values: Sequence[float], **options: Any) -> None:
        """Store a figure, in place of an earlier one with this name; the options are the attributes of `Figure`."""
        self._store(Figure(name, [float(value) for value in values], **options))

    def add_facts(self, **facts: Any) -> None:
        """Store facts that are not in the table's rows, such as versions and raw measurements."""
        self._facts |= facts
        self._write()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Run a block; an error in it becomes the failure of the figure `name` and does not end the section."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- a failed measurement must not lose the other ones
            self._store(Figure(name, failure=f"{type(error).__name__}: {error}"))
            traceback.print_exc()

    def _store(self, figure: Figure) -> None:
        self._figures[figure.name] = figure
        print(figure.row, flush=True)
        self._write()

    def _write(self) -> None:
        scratch = self._file.with_suffix(".tmp")
        scratch.write_text(
            json.dumps({"facts": self._facts, "figures": [asdict(item) for item in self._figures.values()]})
        )
        os.replace(scratch, self._file)


@dataclass(frozen=True)
class Section:
    """The result of a section.

    Attributes:
        name: name of the section.
        title: what it measures.
        figures: its figures.
        facts: what else it stored.
        status: exit status of its process, 124 or 137 after a timeout; None if it has not run.
        seconds: duration of its process.
        log: output of its process.
    """

    name: str
    title: str
    figures: list[Figure]
    facts: dict[str, Any]
    status: int | None = None
    seconds: float = 0.0
    log: str = ""

    @classmethod
    def read(cls, name: str, title: str, folder: Path) -> "Section":
        """Read the files of a section: NAME.json, NAME.status and NAME.log; each may be missing."""
        file, status, log = (folder / f"{name}.{suffix}" for suffix in ("json", "status", "log"))
        content = json.loads(file.read_text()) if file.is_file() else {"figures": [], "facts": {}}
        code, seconds = status.read_text().split() if status.is_file() else (None, "0")
        return cls(
            name,
            title,
            [Figure(**item) for item in content["figures"]],
            content["facts"],
            None if code is None else int(code),
            float(seconds),
            log.read_text(errors="replace") if log.is_file() else "",
        )

    @property
    def failure(self) -> str:
        """The reason why the section is not complete; empty if it is."""
        if self.status is None:
            return self.log.strip()
        if self.status in (124, 137):
            return f"stopped after {self.seconds:.0f} s"
        return f"exit status {self.status}" if self.status else ""

    @property
    def rows(self) -> list[str]:
        """The rows of the table."""
        state = (
            f"failed: {self.failure}" if self.failure else "not run" if self.status is None else f"{self.seconds:.0f} s"
        )
        return [f"| **{self.title}** | {state} | | |", *(figure.row for figure in self.figures)]


def format_report(title: str, facts: dict[str, Any], sections: Sequence[Section]) -> str:
    """Return the report in Markdown: the facts, one table with all figures, and the log's end of failed sections."""
    lines = [f"# {title}", "", ", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    lines += ["| measurement | median (range) | aim | peak memory, GiB |", "|---|---|---|---|"]
    lines += [row for section in sections for row in section.rows]
    for section in sections:
        failed = any(figure.failure for figure in section.figures)
        if (section.failure or failed) and section.log:
            tail = section.log.rstrip().splitlines()[-TAIL_LINES:]
            lines += ["", f"The end of the log of section `{section.name}`:", "", "```text", *tail, "```"]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:200]
