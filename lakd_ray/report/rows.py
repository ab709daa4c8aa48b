"""Predictions as rows of the report, and the headline table as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from lakd_ray import metrics
from lakd_ray.labels import POOLED
from lakd_ray.report.predictions import TEACHER, Predictions


class Row(TypedDict):
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
class Line:
    """A model's rows side by side: one line of the headline table."""

    name: str
    model: str
    is_student: bool
    cells: dict[str, Row]
    """By language."""


def rows_of(one: Predictions, languages: Sequence[str], emotions: Sequence[str]) -> list[Row]:
    """A row for each of `languages` that the model was asked about, then one for all of its utterances."""
    present = set(one.language_N.tolist())
    order = [*(name for name in languages if name in present), *sorted(present - set(languages))]
    return [*(_row(one.only([name]), name, emotions) for name in order), _row(one, POOLED, emotions)]


def _row(one: Predictions, language: str, emotions: Sequence[str]) -> Row:
    scores = metrics.score(one.probabilities_NC, one.labels_N, emotions)
    bounds = metrics.interval(one.probabilities_NC, one.labels_N, one.speaker_N.tolist())
    return Row(
        paradigm=one.paradigm,
        setup=one.setup,
        variant=one.variant,
        unknown=one.unknown,
        model=one.model,
        language=language,
        fold=one.fold,
        seed=one.seed,
        n=scores.n,
        UR=scores.UR,
        UR_interval=None if bounds is None else list(bounds),
        WR=scores.WR,
        macro_f1=scores.macro_f1,
        ece=scores.ece,
        recall=scores.recall,
        confusion=scores.confusion,
    )


def title(paradigm: str, setup: str, variant: str | None = None) -> str:
    """`MTKD multilingual`, or `MTKD multilingual, half` of a variant."""
    kind = "Teacher" if paradigm == TEACHER else paradigm.upper()
    return f"{kind} {setup}" + (f", {variant}" if variant else "")


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """Rows of the same model become one line; order is kept."""
    lines: dict[tuple[str, str], Line] = {}
    for row in rows:
        key = (row["paradigm"], row["model"])
        if key not in lines:
            name = title(row["paradigm"], row["setup"], row["variant"]) + ("*" if row["unknown"] else "")
            lines[key] = Line(name, row["model"], row["paradigm"] != TEACHER, {})
        lines[key].cells[row["language"]] = row
    return list(lines.values())


def columns_of(lines: Sequence[Line]) -> list[str]:
    """Pooled first, then every language in the order of the rows."""
    seen = dict.fromkeys(language for line in lines for language in line.cells)
    return [POOLED, *(language for language in seen if language != POOLED)]


def percent(share: float | None) -> str:
    """`61.2`, or a dash."""
    return "-" if share is None else f"{100 * share:.1f}"


def summary(rows: Sequence[Row]) -> str:
    """The headline table as plain text: UR with its 95 % interval, and WR, in percent."""
    lines = lines_of(rows)
    columns = columns_of(lines)
    table = [["UR [95 %] / WR", "model", *columns]]
    table += [[line.name, line.model, *(_cell(line.cells.get(column)) for column in columns)] for line in lines]
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    bounds = row["UR_interval"]
    shown = f" [{percent(bounds[0])}, {percent(bounds[1])}]" if bounds else ""
    return f"{percent(row['UR'])}{shown} / {percent(row['WR'])}"
