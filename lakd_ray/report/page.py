"""The report as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from lakd_ray import records
from lakd_ray.config import Experiment, dump
from lakd_ray.report import languages as languages_told
from lakd_ray.report import pictures
from lakd_ray.report.curves import Curve
from lakd_ray.report.pictures import Picture
from lakd_ray.report.rows import Line, Row, columns_of, lines_of, percent, title

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Content:
    """All that the page says."""

    config: Experiment
    scope: str
    """Which folds and seeds."""
    findings: Sequence[str]
    warnings: Sequence[str]
    """Cautions about the data themselves; they stand at the top."""
    notes: Sequence[str]
    rows: Sequence[Row]
    """As in report.json."""
    headline: Sequence[Row]
    """Teachers, and students with monolingual ones taken together."""
    curves: Sequence[Curve]
    inputs: Mapping[str, str]
    languages: Sequence[languages_told.Line] = ()
    """Language-aware students by what they are told of the language."""
    dev: Sequence[Mapping[str, Any]] = ()
    """Settings by what dev says of them, as in report.json."""


def render(content: Content) -> str:
    """The page."""
    lines = lines_of(content.headline)
    emotions, languages = content.config.emotions, columns_of(lines)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "points": _points}
    template = resources.files("lakd_ray.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        content=content,
        lines=lines,
        languages=languages,
        best=_best(lines),
        title=title,
        bars=[pictures.bars(lines, language, 1 / len(emotions)) for language in languages],
        recalls=[pictures.recalls(lines, language, emotions) for language in languages],
        confusions=_confusions(lines, languages, emotions),
        curves=[pictures.training(curve) for curve in content.curves],
        config_yaml=yaml.safe_dump(dump(content.config), sort_keys=False, allow_unicode=True, width=100),
        versions=records.versions(),
    )


def _points(share: float | None) -> str:
    """`+1.2`, or a dash."""
    return "-" if share is None else f"{100 * share:+.1f}"


def _best(lines: Sequence[Line]) -> dict[str, float]:
    """The highest UR that a student reaches in each language."""
    best: dict[str, float] = {}
    for line in lines:
        for language, row in line.cells.items():
            if line.is_student:
                best[language] = max(row["UR"], best.get(language, 0))
    return best


def _confusions(
    lines: Sequence[Line], languages: Sequence[str], emotions: Sequence[str]
) -> list[tuple[Line, list[Picture]]]:
    return [
        (line, [pictures.confusion(line.cells[name], emotions) for name in languages if name in line.cells])
        for line in lines
        if line.is_student
    ]
