"""Rendering of the report as one self-contained HTML page."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from lakd_ray.config import Experiment, to_dict
from lakd_ray.report import figures
from lakd_ray.report.curves import Curve
from lakd_ray.report.figures import EmbeddedImage
from lakd_ray.report.language_conditions import LanguageRow
from lakd_ray.report.result_table import (
    ResultRow,
    TableRow,
    build_table,
    format_language,
    format_percent,
    format_title,
    list_columns,
)
from lakd_ray.runs import record
from lakd_ray.statistics import format_p

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class ReportContent:
    """Everything that the page displays."""

    config: Experiment
    scope: str
    """Folds and seeds that it covers."""
    findings: Sequence[str]
    warnings: Sequence[str]
    """Warnings about the data, displayed at the top."""
    notes: Sequence[str]
    results: Sequence[ResultRow]
    """As in report.json."""
    headline: Sequence[ResultRow]
    """Rows of the headline table and of the figures: monolingual students of a setting count as one model."""
    curves: Sequence[Curve]
    inputs: Mapping[str, str]
    """Digest of each predictions file."""
    language_conditions: Sequence[LanguageRow] = ()
    """Language-aware students by language condition."""
    model_selection: Sequence[Mapping[str, Any]] = ()
    """UR on dev of each student setting, as in report.json."""
    comparisons: Sequence[Mapping[str, Any]] = ()
    """Paired differences on test, as in report.json."""


def render_report(report: ReportContent) -> str:
    """Render the page as HTML."""
    lines = build_table(report.headline)
    emotions, languages = report.config.emotions, list_columns(lines)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": format_percent,
        "points": _format_points,
        "p_value": format_p,
        "code": _format_code,
    }
    template = resources.files("lakd_ray.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        content=report,
        lines=lines,
        languages=languages,
        best=_best_student_UR(lines),
        selected=next((_title(row) for row in report.model_selection if row["selected"]), None),
        title=format_title,
        marks=defaultdict(str)
        | {name: line.marks for line in lines if line.is_student for name in (line.title, line.model)},
        language_name=format_language,
        has_variants=any(row["difference"] is not None for row in report.model_selection),
        bars=[figures.draw_recall_bars(lines, language, 1 / len(emotions)) for language in languages],
        recalls=[figures.draw_recall_heatmap(lines, language, emotions) for language in languages],
        confusions=_draw_confusions(lines, languages, emotions),
        curves=[figures.draw_training_curves(curve) for curve in report.curves],
        config_yaml=yaml.safe_dump(to_dict(report.config), sort_keys=False, allow_unicode=True, width=100),
        versions=record.package_versions(),
    )


def _format_points(fraction: float | None) -> str:
    """Format a fraction as signed percentage points such as `+1.2`, or None as a dash."""
    return "-" if fraction is None else f"{100 * fraction:+.1f}"


def _format_code(text: str) -> Markup:
    """Escape a sentence and turn its parts in backticks into code elements."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _title(row: Mapping[str, Any]) -> str:
    return format_title(row["paradigm"], row["setup"], row["variant"])


def _best_student_UR(table_rows: Sequence[TableRow]) -> dict[str, float]:
    """Return the highest UR of a student in each language."""
    best: dict[str, float] = {}
    for line in table_rows:
        for language, row in line.cells.items():
            if line.is_student:
                best[language] = max(row["UR"], best.get(language, 0))
    return best


def _draw_confusions(
    table_rows: Sequence[TableRow], languages: Sequence[str], emotions: Sequence[str]
) -> list[tuple[TableRow, list[EmbeddedImage]]]:
    return [
        (
            line,
            [
                figures.draw_confusion_matrix(line.cells[name], emotions)
                for name in languages
                if name in line.cells and line.cells[name]["confusion"] is not None
            ],
        )
        for line in table_rows
        if line.is_student
    ]
