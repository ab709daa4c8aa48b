"""Rows of the report's result tables, and their side-by-side form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from lakd_ray.labels import MEAN_OVER_LANGUAGES, POOLED
from lakd_ray.report.predictions import TEACHER


class ResultRow(TypedDict):
    """Scores of one model in one language, their mean over languages, or those of all utterances. JSON without NaN."""

    paradigm: str
    setup: str
    variant: str | None
    undisclosed_models: str
    """Models that it started or learned from whose training data is not known, separated by commas."""
    settings_selected_on: str
    """Test speakers whose results selected its settings, separated by commas; usually empty."""
    model: str
    language: str
    """Code of a language, `MEAN_OVER_LANGUAGES` or `POOLED`."""
    fold: int | None
    """None: all folds are pooled; n predictions of an utterance by models of several folds weigh 1/n each."""
    seed: int | None
    """None: the scores are means over all seeds."""
    n: int
    """Number of utterances."""
    UR: float
    UR_interval: list[float] | None
    """95 % interval; None where a language has a single test speaker, or all have the same score."""
    WR: float
    WR_interval: list[float] | None
    macro_f1: float
    ece: float
    recall: dict[str, float | None]
    confusion: list[list[float]] | None
    """Utterances by truth (rows) and prediction, as means over seeds; None for the mean over languages."""


@dataclass(frozen=True)
class TableRow:
    """Rows of one model side by side: one line of the headline table."""

    title: str
    """Name of the setting."""
    marks: str
    """Marks that refer to caveats; usually empty."""
    model: str
    is_student: bool
    cells: dict[str, ResultRow]
    """Result row by language."""

    @property
    def name(self) -> str:
        """The displayed name is the title with its marks."""
        return self.title + self.marks


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
            marks = ("*" if row["undisclosed_models"] else "") + ("†" if row["settings_selected_on"] else "")
            title = format_title(row["paradigm"], row["setup"], row["variant"])
            lines[key] = TableRow(title, marks, row["model"], row["paradigm"] != TEACHER, {})
        lines[key].cells[row["language"]] = row
    return list(lines.values())


def list_columns(table_rows: Sequence[TableRow]) -> list[str]:
    """Return the mean over languages, the pooled column and every language; only the language if there is one."""
    seen = dict.fromkeys(language for line in table_rows for language in line.cells)
    languages = [name for name in seen if name not in (MEAN_OVER_LANGUAGES, POOLED)]
    return languages if len(languages) == 1 else [MEAN_OVER_LANGUAGES, POOLED, *languages]


def format_percent(fraction: float | None) -> str:
    """Format a fraction as a percentage such as `61.2`, or None as a dash."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def format_language(language: str) -> str:
    """Return the displayed name of a column of the result tables."""
    return {MEAN_OVER_LANGUAGES: "mean over languages", POOLED: "all utterances"}.get(language, language)


def select_headline_rows(report: Mapping[str, Any]) -> list[ResultRow]:
    """Return the rows of the headline table: those of settings; with one cell, teachers are listed individually.

    Args:
        report: content of report.json.
    """
    pooled: list[ResultRow] = report["pooled"]
    if len(report["cells"]) > 1:
        return pooled
    teachers: list[ResultRow] = [row for row in report["results"] if row["paradigm"] == TEACHER]
    return teachers + [row for row in pooled if row["paradigm"] != TEACHER]
