"""Log records of the package as output of the command line."""

import io
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer

from lakd_ray.cli.output import print_styled, print_text

_LEVEL_COLORS = {logging.WARNING: typer.colors.YELLOW, logging.ERROR: typer.colors.RED}


_LIBRARY_SETTINGS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # also the bars "Loading weights" of transformers
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def silence_libraries() -> None:
    """Turn off progress bars and messages of libraries before they are imported; the environment takes precedence."""
    for name, value in _LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)


_RAY_CORE_LINE = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+ [IWE] \d+ \d+\] [\w/.]+\.cc:\d+: ")


@contextmanager
def hide_ray_core_lines() -> Iterator[None]:
    """Keep the log lines of Ray's C++ core off standard error until the `with` block ends.

    The core writes its errors, some of which belong to an orderly run, straight to file descriptor 2. They are also in
    the driver's log in Ray's session folder. Everything else that native code writes there is passed on. Python's own
    standard error is not affected.
    """
    original = sys.stderr
    try:
        is_real = original.fileno() == 2
    except (AttributeError, io.UnsupportedOperation):  # replaced by a test or a notebook
        is_real = False
    if not is_real:
        yield
        return
    target = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    thread = threading.Thread(target=_forward_lines, args=(reader, target), daemon=True)
    thread.start()
    # A line per write, as Python's own standard error: otherwise a forwarded line gets between a text and its newline.
    sys.stderr = open(  # noqa: SIM115 -- log handlers may write to it after the block
        target, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = original
        os.dup2(target, 2)
        thread.join(timeout=1)  # a child process may still hold the pipe


def _forward_lines(reader: int, target: int) -> None:
    with open(reader, "rb") as stream:
        for line in stream:
            if not _RAY_CORE_LINE.match(line):
                os.write(target, line)


def supports_color(stream: TextIO) -> bool:
    """Return whether the stream is a terminal that shows colors, and NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def log_level(verbose: bool, quiet: bool) -> int:
    """Return the level of the package's logger for the options `-v` and `-q`."""
    if verbose:
        return logging.DEBUG
    return logging.WARNING if quiet else logging.INFO


@contextmanager
def log_to_console(level: int) -> Iterator[None]:
    """Write the records of `lakd_ray` to the console until the `with` block ends.

    INFO records go to standard output as their message alone, DEBUG records with the module's name. Warnings and errors
    go to standard error. Colors are used on terminals only.
    """
    logger = logging.getLogger("lakd_ray")
    previous_level, handlers = logger.level, (_OutputHandler(), _ErrorHandler())
    logger.setLevel(level)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
        logger.setLevel(previous_level)


class _OutputHandler(logging.Handler):
    """Writes records below WARNING to the present standard output, which a progress bar may replace."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno < logging.INFO:
            text = f"{record.name}: {text}"
        start, end = ("\x1b[1m", "\x1b[0m") if _is_heading(record) and supports_color(sys.stdout) else ("", "")
        print_styled(start, text, end, file=sys.stdout)


def _is_heading(record: logging.LogRecord) -> bool:
    return record.levelno == logging.INFO and record.getMessage().lstrip("\n").startswith("== ")


class _ErrorHandler(logging.Handler):
    """Writes warnings and errors to the present standard error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        label = f"{record.levelname.lower()}:"
        print_message(label, record.getMessage(), _LEVEL_COLORS.get(record.levelno, typer.colors.RED))
        if record.exc_info:
            print_text(logging.Formatter().formatException(record.exc_info), file=sys.stderr)


def print_message(label: str, message: str, color: str = typer.colors.RED) -> None:
    """Print `label message` to standard error, the label in color on a terminal."""
    shown = typer.style(label, fg=color, bold=True) if supports_color(sys.stderr) else label
    print_styled(f"{shown} ", message, file=sys.stderr)
