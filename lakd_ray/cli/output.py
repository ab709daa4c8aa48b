"""Print to standard output and standard error: the only way in which commands write to a terminal."""

import sys
from typing import TextIO

from lakd_ray.escaping import for_terminal
from lakd_ray.redaction import redact


def print_text(text: str = "", *, file: TextIO | None = None, end: str = "\n") -> None:
    """Print text without control sequences and credentials, and flush: the reader of a pipe receives it at once.

    Args:
        text: the text; names in it may come from anywhere.
        file: the stream; the present standard output if None.
        end: printed after the text.
    """
    print(for_terminal(redact(text)), file=file or sys.stdout, end=end, flush=True)


def print_styled(start: str, text: str, end: str = "", *, file: TextIO) -> None:
    """Print a text without control sequences and credentials between two texts that may have colors."""
    print(f"{start}{for_terminal(redact(text))}{end}", file=file, flush=True)
