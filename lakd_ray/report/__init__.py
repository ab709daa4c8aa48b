"""The report: what evaluation found, as JSON for machines and one HTML page for people."""

from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.report import curves, findings, html_report, language_conditions, predictions
from lakd_ray.report.rows import ResultRow, build_result_rows, format_summary
from lakd_ray.runs import record
from lakd_ray.runs.graph import RunGraph

__all__ = ["ResultRow", "format_summary", "write_report"]

JSON_FILE, HTML_FILE = "report.json", "report.html"


def write_report(graph: RunGraph) -> str:
    """Write report.json and report.html from the experiment's predictions; always made anew.

    Returns:
        Where report.html lies.

    Raises:
        StageError: evaluation has not run.
        DataError: predictions cannot be compared with each other.
    """
    config = graph.config
    folder = config.stage_folder("report")
    found = predictions.read_predictions(graph)
    students = predictions.group_students(found)
    languages, emotions = config.languages, config.emotions
    rows = [row for one in found for row in build_result_rows(one, languages, emotions)]
    teachers = [row for row in rows if row["paradigm"] == predictions.TEACHER]
    compared = [row for one in students for row in build_result_rows(one, languages, emotions)]

    said = [findings.describe_best_student(compared), *findings.compare_paradigms(students, emotions)]
    aware = language_conditions.score_language_conditions(graph)
    warnings = findings.synthetic_corpus_warnings(config)
    notes = [*language_conditions.summary_sentences(aware), *findings.caveats(graph, found)]
    inputs = {one.model: one.digest for one in found}
    html = html_report.render_report(
        html_report.ReportContent(
            config=config,
            scope=f"Fold {config.fold}, seed {config.seed}",
            findings=said,
            warnings=warnings,
            notes=notes,
            rows=rows,
            headline=[*teachers, *compared],
            curves=curves.read_curves(graph.evaluated, config),
            inputs=inputs,
            languages=language_conditions.build_language_table(aware),
        )
    )

    fingerprint = {"stage": "report", "inputs": inputs}
    record.mark_started(folder, fingerprint)
    report = describe_experiment(config) | {"notes": [*warnings, *said, *notes], "results": rows, "languages": aware}
    storage.write_json(storage.join(folder, JSON_FILE), report)
    storage.write_bytes(storage.join(folder, HTML_FILE), html.encode())
    record.mark_finished(folder, fingerprint, [JSON_FILE, HTML_FILE])
    return storage.join(folder, HTML_FILE)


def describe_experiment(config: Experiment) -> dict[str, Any]:
    """What a report is about, as plain JSON types."""
    return {
        "experiment": config.name,
        "corpora": [
            {"name": corpus.name, "importer": corpus.importer, "synthetic": corpus.is_synthetic}
            for corpus in config.corpora
        ],
    }
