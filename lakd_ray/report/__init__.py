"""The report: what evaluation found, as JSON for machines and one HTML page for people."""

from typing import Any

from lakd_ray import records, storage
from lakd_ray.config import Experiment
from lakd_ray.report import curves, findings, page, predictions
from lakd_ray.report import languages as languages_told
from lakd_ray.report.rows import Row, rows_of, summary
from lakd_ray.runs import student_runs, teacher_runs

__all__ = ["Row", "run", "summary"]

JSON, HTML = "report.json", "report.html"


def run(config: Experiment) -> str:
    """Write report.json and report.html from the experiment's predictions; always made anew.

    Returns:
        Where report.html lies.

    Raises:
        StageError: evaluation has not run.
        DataError: predictions cannot be compared with each other.
    """
    folder = config.stage_folder("report")
    found = predictions.read(config)
    students = predictions.compared(found)
    languages, emotions = config.languages, config.emotions
    rows = [row for one in found for row in rows_of(one, languages, emotions)]
    teachers = [row for row in rows if row["paradigm"] == predictions.TEACHER]
    compared = [row for one in students for row in rows_of(one, languages, emotions)]

    said = [findings.best(compared), *findings.comparisons(students, emotions)]
    aware = languages_told.rows(config)
    warnings = findings.synthetic(config)
    notes = [*languages_told.sentences(aware), *findings.cautions(config, found)]
    inputs = {one.model: one.digest for one in found}
    html = page.render(
        page.Content(
            config=config,
            scope=f"Fold {config.fold}, seed {config.seed}",
            findings=said,
            warnings=warnings,
            notes=notes,
            rows=rows,
            headline=[*teachers, *compared],
            curves=curves.read([*teacher_runs(config), *student_runs(config)], config),
            inputs=inputs,
            languages=languages_told.lines(aware),
        )
    )

    made_by = {"stage": "report", "inputs": inputs}
    records.start(folder, made_by)
    report = describe(config) | {"notes": [*warnings, *said, *notes], "results": rows, "languages": aware}
    storage.write_json(storage.join(folder, JSON), report)
    storage.write_bytes(storage.join(folder, HTML), html.encode())
    records.finish(folder, made_by, [JSON, HTML])
    return storage.join(folder, HTML)


def describe(config: Experiment) -> dict[str, Any]:
    """What a report is about, as plain JSON types."""
    return {
        "experiment": config.name,
        "corpora": [
            {"name": corpus.name, "importer": corpus.importer, "synthetic": corpus.spoken_by_none}
            for corpus in config.corpora
        ],
    }
