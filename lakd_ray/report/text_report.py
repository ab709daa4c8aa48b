"""Plain-text form of report.json for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from lakd_ray.labels import MEAN_OVER_LANGUAGES
from lakd_ray.report.predictions import TEACHER
from lakd_ray.report.result_table import ResultRow, build_table, format_percent, list_columns, select_headline_rows


def format_summary(report: Mapping[str, Any]) -> str:
    """Format the headline table and the notes of a report as plain text.

    The table has a line per setting; a report of one cell has a line per teacher, a report of several cells a table of
    recalls.

    Args:
        report: content of report.json.
    """
    parts = [format_scores(select_headline_rows(report))]
    if len(report["cells"]) > 1:
        parts.append(_format_recalls(report["pooled"], report["emotions"]))
    parts.append("\n".join(f"note: {note}" for note in report["notes"]))
    return "\n\n".join(parts)


def format_scores(rows: Sequence[ResultRow]) -> str:
    """Format rows as an aligned table of UR with its 95 % interval and WR, in percent.

    The columns `mean` (over languages) and `all` (utterances) are explained in a note of the report.
    """
    lines = build_table(rows)
    columns = list_columns(lines)
    table = [["UR [95 %] / WR", "model", *columns]]
    table += [[line.name, line.model, *(_format_cell(line.cells.get(column)) for column in columns)] for line in lines]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def _format_cell(row: ResultRow | None) -> str:
    if row is None:
        return "-"
    bounds = row["UR_interval"]
    interval = f" [{format_percent(bounds[0])}, {format_percent(bounds[1])}]" if bounds else ""
    return f"{format_percent(row['UR'])}{interval} / {format_percent(row['WR'])}"


def _format_recalls(rows: Sequence[ResultRow], emotions: Sequence[str]) -> str:
    """Format the students' recall of each emotion, as means over languages, in percent."""
    students = [row for row in rows if row["language"] == MEAN_OVER_LANGUAGES and row["paradigm"] != TEACHER]
    width = max((len(row["model"]) for row in students), default=0)
    lines = ["recall".ljust(width) + "".join(emotion.rjust(12) for emotion in emotions)]
    lines += [
        row["model"].ljust(width) + "".join(format_percent(row["recall"][emotion]).rjust(12) for emotion in emotions)
        for row in students
    ]
    return "\n".join(lines)
