"""Predictions as rows of the report, and the headline table as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from lakd_ray import metrics
from lakd_ray.labels import POOLED
from lakd_ray.report.predictions import TEACHER, Predictions


class ResultRow(TypedDict):
    """One model in one language, or in all of them pooled. Plain JSON, no NaN."""

    paradigm: str
    setup: str
    variant: str | None
    unknown: str
    model: str
    language: str
    fold: int | None
    """None: all folds pooled, each utterance once."""
    seed: int | None
    """None: the mean over all seeds."""
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
    """A model's rows side by side: one line of the headline table."""

    name: str
    model: str
    is_student: bool
    cells: dict[str, ResultRow]
    """By language."""


def build_result_rows(predictions: Predictions, languages: Sequence[str], emotions: Sequence[str]) -> list[ResultRow]:
    """A row for each of `languages` that the model was asked about, then one for all of its utterances."""
    present = set(predictions.language_N.tolist())
    order = [*(name for name in languages if name in present), *sorted(present - set(languages))]
    return [
        *(_build_row(predictions.select_languages([name]), name, emotions) for name in order),
        _build_row(predictions, POOLED, emotions),
    ]


def _build_row(predictions: Predictions, language: str, emotions: Sequence[str]) -> ResultRow:
    scores = metrics.compute_scores(predictions.probabilities_NC, predictions.labels_N, emotions)
    bounds = metrics.bootstrap_interval(
        predictions.probabilities_NC, predictions.labels_N, predictions.speaker_N.tolist()
    )
    return ResultRow(
        paradigm=predictions.paradigm,
        setup=predictions.setup,
        variant=predictions.variant,
        unknown=predictions.unknown,
        model=predictions.model,
        language=language,
        fold=predictions.fold,
        seed=predictions.seed,
        n=scores.n,
        UR=scores.UR,
        UR_interval=None if bounds is None else list(bounds),
        WR=scores.WR,
        macro_f1=scores.macro_f1,
        ece=scores.ece,
        recall=scores.recall,
        confusion=scores.confusion,
    )


def format_title(paradigm: str, setup: str, variant: str | None = None) -> str:
    """`MTKD multilingual`, or `MTKD multilingual, half` of a variant."""
    kind = "Teacher" if paradigm == TEACHER else paradigm.upper()
    return f"{kind} {setup}" + (f", {variant}" if variant else "")


def build_table(rows: Sequence[ResultRow]) -> list[TableRow]:
    """Rows of the same model become one line; order is kept."""
    lines: dict[tuple[str, str], TableRow] = {}
    for row in rows:
        key = (row["paradigm"], row["model"])
        if key not in lines:
            name = format_title(row["paradigm"], row["setup"], row["variant"]) + ("*" if row["unknown"] else "")
            lines[key] = TableRow(name, row["model"], row["paradigm"] != TEACHER, {})
        lines[key].cells[row["language"]] = row
    return list(lines.values())


def list_columns(table_rows: Sequence[TableRow]) -> list[str]:
    """Pooled first, then every language in the order of the rows."""
    seen = dict.fromkeys(language for line in table_rows for language in line.cells)
    return [POOLED, *(language for language in seen if language != POOLED)]


def format_percent(fraction: float | None) -> str:
    """`61.2`, or a dash."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def format_summary(rows: Sequence[ResultRow]) -> str:
    """The headline table as plain text: UR with its 95 % interval, and WR, in percent."""
    lines = build_table(rows)
    columns = list_columns(lines)
    table = [["UR [95 %] / WR", "model", *columns]]
    table += [[line.name, line.model, *(_format_cell(line.cells.get(column)) for column in columns)] for line in lines]
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def _format_cell(row: ResultRow | None) -> str:
    if row is None:
        return "-"
    bounds = row["UR_interval"]
    shown = f" [{format_percent(bounds[0])}, {format_percent(bounds[1])}]" if bounds else ""
    return f"{format_percent(row['UR'])}{shown} / {format_percent(row['WR'])}"
