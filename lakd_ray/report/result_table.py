"""Rows of the report's result tables, and their side-by-side form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from lakd_ray.labels import POOLED
from lakd_ray.report.predictions import TEACHER


class ResultRow(TypedDict):
    """Scores of one model in one language, or in all of them pooled. Plain JSON without NaN."""

    paradigm: str
    setup: str
    variant: str | None
    undisclosed_teachers: str
    """Teachers whose training data is not disclosed, separated by commas; usually empty."""
    model: str
    language: str
    fold: int | None
    """None: all folds are pooled, each utterance counts once."""
    seed: int | None
    """None: the scores are means over all seeds."""
    n: int
    UR: float
    UR_interval: list[float] | None
    WR: float
    macro_f1: float
    ece: float
    recall: dict[str, float | None]
    confusion: list[list[int]]


@dataclass(frozen=True)
class TableRow:
    """Rows of one model side by side: one line of the headline table."""

    name: str
    model: str
    is_student: bool
    cells: dict[str, ResultRow]
    """Result row by language."""


def format_title(paradigm: str, setup: str, variant: str | None = None) -> str:
    """Return the displayed name of a setting: `MTKD multilingual`, or `MTKD multilingual, half` for a variant."""
    kind = "Teacher" if paradigm == TEACHER else paradigm.upper()
    return f"{kind} {setup}" + (f", {variant}" if variant else "")


def build_table(rows: Sequence[ResultRow]) -> list[TableRow]:
    """Merge the rows of each model into one line, in the order of the rows."""
    lines: dict[tuple[str, str], TableRow] = {}
    for row in rows:
        key = (row["paradigm"], row["model"])
        if key not in lines:
            name = format_title(row["paradigm"], row["setup"], row["variant"]) + (
                "*" if row["undisclosed_teachers"] else ""
            )
            lines[key] = TableRow(name, row["model"], row["paradigm"] != TEACHER, {})
        lines[key].cells[row["language"]] = row
    return list(lines.values())


def list_columns(table_rows: Sequence[TableRow]) -> list[str]:
    """Return the pooled column, then every language in the order of the rows."""
    seen = dict.fromkeys(language for line in table_rows for language in line.cells)
    return [POOLED, *(language for language in seen if language != POOLED)]


def format_percent(fraction: float | None) -> str:
    """Format a fraction as a percentage such as `61.2`, or None as a dash."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"
