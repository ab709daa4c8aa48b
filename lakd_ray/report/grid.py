"""The report over all cells of an experiment's grid: the files of one cell, results pooled over folds and seeds."""

from collections.abc import Sequence

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.errors import StageError
from lakd_ray.labels import POOLED
from lakd_ray.report import (
    HTML_FILE,
    JSON_FILE,
    describe_experiment,
    findings,
    html_report,
    language_conditions,
    model_selection,
)
from lakd_ray.report.aggregate import SeedAggregate, aggregate_seeds, build_aggregate_rows, compare_aggregates
from lakd_ray.report.predictions import TEACHER, Predictions, read_predictions_file
from lakd_ray.report.rows import ResultRow, build_result_rows, format_percent
from lakd_ray.runs import record
from lakd_ray.runs.graph import RunGraph, build_run_graph
from lakd_ray.runs.layout import predictions_folder

_PUBLISHED_RESULTS = (
    "Published by Bijoy et al. (Interspeech 2025) for their multi-teacher student: WR 72.9 % on English (IEMOCAP) and "
    "UR 63.4 % on Finnish (FESC). Theirs is another division into dev and test, and other seeds."
)


def write_grid_report(config: Experiment, cells: Sequence[RunGraph], failed_runs: Sequence[str] = ()) -> str:
    """Write report.json and report.html over all predictions that are there; always made anew.

    Args:
        cells: the runs of each fold, seed and variant.
        missing: runs that failed; the report says so.

    Returns:
        Where report.html lies.

    Raises:
        StageError: there are no predictions.
        DataError: a file of predictions is damaged.
    """
    folder = config.stage_folder("report")
    found = _read_all_predictions(cells)
    if not any(one.is_student for one in found):
        raise StageError(
            f"no student's predictions in {config.stage_folder('evaluate')}: train and evaluate some first"
        )
    languages, emotions = config.languages, config.emotions
    together = sorted(
        aggregate_seeds(found), key=lambda pool: (pool.paradigm != TEACHER, pool.setup, pool.variant or "")
    )
    headline = [row for pool in together for row in build_aggregate_rows(pool, languages, emotions)]
    rows = [row for one in found for row in build_result_rows(one, languages, emotions)]
    chosen = model_selection.compare_settings(model_selection.compute_dev_scores(cells))
    aware = language_conditions.average_over_cells(cells)
    said = [
        findings.describe_best_student([row for row in headline if row["paradigm"] != TEACHER]),
        *model_selection.summary_sentences(chosen),
        *compare_aggregates(together, emotions),
    ]
    warnings = findings.synthetic_corpus_warnings(config)
    notes = [
        _utterance_count_note(together),
        *language_conditions.summary_sentences(aware),
        *findings.caveats(build_run_graph(config), found),
        *_published_results_note(config),
        *_failed_runs_note(failed_runs),
    ]
    inputs = {f"{one.model} fold {one.fold}": one.digest for one in found}
    fingerprint = {"stage": "report", "inputs": inputs}
    html = html_report.render_report(
        html_report.ReportContent(
            config=config,
            scope=_describe_scope(cells),
            findings=said,
            warnings=warnings,
            notes=notes,
            rows=rows,
            headline=headline,
            curves=(),
            inputs=inputs,
            languages=language_conditions.build_language_table(aware),
            dev=chosen,
        )
    )
    record.mark_started(folder, fingerprint)
    tables = {"results": rows, "pooled": headline, "dev": chosen, "languages": aware}
    told = {"notes": [*warnings, *said, *notes], **tables}
    storage.write_json(storage.join(folder, JSON_FILE), describe_experiment(config) | told)
    storage.write_bytes(storage.join(folder, HTML_FILE), html.encode())
    record.mark_finished(folder, fingerprint, [JSON_FILE, HTML_FILE])
    return storage.join(folder, HTML_FILE)


def _read_all_predictions(cells: Sequence[RunGraph]) -> list[Predictions]:
    """What is there of all cells' predictions, each file once."""
    found: dict[str, Predictions] = {}
    listed: dict[str, set[str]] = {}
    for cell in cells:
        folder = predictions_folder(cell.config)
        if folder not in listed:
            listed[folder] = {info.name for info in storage.list_files(folder)}
        for run in cell.evaluated:
            location = storage.join(folder, f"{run.id}.parquet")
            if f"{run.id}.parquet" in listed[folder] and location not in found:
                found[location] = read_predictions_file(location, cell)
    return list(found.values())


def format_recalls(rows: Sequence[ResultRow], emotions: Sequence[str]) -> str:
    """Recall of each emotion over all languages, for the terminal, in percent."""
    chosen = [row for row in rows if row["language"] == POOLED and row["paradigm"] != TEACHER]
    width = max(len(row["model"]) for row in chosen)
    lines = ["recall".ljust(width) + "".join(emotion.rjust(12) for emotion in emotions)]
    lines += [
        row["model"].ljust(width) + "".join(format_percent(row["recall"][emotion]).rjust(12) for emotion in emotions)
        for row in chosen
    ]
    return "\n".join(lines)


def _describe_scope(cells: Sequence[RunGraph]) -> str:
    folds, seeds = (sorted({getattr(cell.config, name) for cell in cells}) for name in ("fold", "seed"))
    return f"Folds {', '.join(map(str, folds))}; seeds {', '.join(map(str, seeds))}"


def _utterance_count_note(aggregates: Sequence[SeedAggregate]) -> str:
    counts = {len(one.labels_N) for pool in aggregates if pool.paradigm != TEACHER for one in pool.by_seed.values()}
    least, most = min(counts), max(counts)
    each = f"{most}" if least == most else f"{least} to {most} (runs are missing)"
    return (
        f"Each test utterance counts once for each seed: {each} of them. Scores are means over seeds; intervals are "
        "95 % bootstraps over speakers and seeds."
    )


def _published_results_note(config: Experiment) -> list[str]:
    return [_PUBLISHED_RESULTS] if {"iemocap", "fesc"} & {corpus.importer for corpus in config.corpora} else []


def _failed_runs_note(failed_runs: Sequence[str]) -> list[str]:
    return [f"Failed, and not in the table: {', '.join(failed_runs)}."] if failed_runs else []
