"""Assemble the report; all tables and sentences are computed once, for report.json, report.html and the terminal.

report.json:

    experiment, emotions, corpora   what was evaluated; `emotions` is the class order of the confusion matrices
    cells                           {fold, seed, variant} of each grid cell
    notes                           sentences of the page, warnings first
    results                         one `ResultRow` per run, cell and language
    pooled                          one `ResultRow` per setting and language, over all folds and seeds; the rows `mean`
                                    and `all` are the mean over languages and the score of all utterances together
    comparisons                     paired differences on test, see `comparisons.compare_aggregates` and `verdicts`
    model_selection                 UR on dev of each student setting, see `model_selection.compare_settings`
    language_conditions             see `language_conditions.score_language_conditions`
"""

from collections.abc import Sequence
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.report import caveats, comparisons, curves, html_report, language_conditions, model_selection, verdicts
from lakd_ray.report.aggregate import SeedAggregate, aggregate_seeds, build_rows, single_model
from lakd_ray.report.predictions import Predictions, read_grid_predictions
from lakd_ray.report.result_table import select_headline_rows
from lakd_ray.runs import record
from lakd_ray.runs.graph import RunGraph, build_run_graph

JSON_FILE, HTML_FILE = "report.json", "report.html"


def write_report(config: Experiment, cells: Sequence[RunGraph], failed_runs: Sequence[str] = ()) -> str:
    """Write report.json and report.html from the predictions of all cells. Existing files are replaced.

    Args:
        config: the experiment; names the report's folder.
        cells: the run graph of each fold, seed and variant; one graph for the report of a single fold.
        failed_runs: ids of runs that failed: the report notes that they are missing.

    Returns:
        Location of report.html.

    Raises:
        StageError: predictions of a student that did not fail are missing, or all students failed.
        DataError: a predictions file is invalid, or models of a cell were evaluated on different utterances.
    """
    base_graph = cells[0] if len(cells) == 1 else build_run_graph(config)
    predictions = read_grid_predictions(config, cells, failed_runs)
    aggregates = aggregate_seeds(predictions)
    tables = _build_tables(config, cells, predictions, aggregates)
    content = html_report.ReportContent(
        config=config,
        scope=_describe_scope(cells),
        findings=[
            *model_selection.describe_selected_students(
                base_graph, tables["results"], tables["pooled"], tables["model_selection"]
            ),
            *model_selection.summary_sentences(tables["model_selection"]),
            *map(comparisons.describe_comparison, tables["comparisons"]),
            *verdicts.adjustment_note(_list_tests(tables)),
        ],
        warnings=caveats.synthetic_corpus_warnings(config),
        notes=[
            *_summary_measure_note(config),
            *_utterance_count_note(cells, aggregates),
            *language_conditions.summary_sentences(tables["language_conditions"]),
            *caveats.list_caveats(base_graph, cells, predictions, failed_runs),
        ],
        results=tables["results"],
        headline=select_headline_rows({"cells": cells, **tables}),
        curves=curves.read_curves(base_graph.evaluated, config) if len(cells) == 1 else (),
        inputs={_input_name(cells, file): file.digest for file in predictions},
        language_conditions=language_conditions.build_language_table(tables["language_conditions"]),
        model_selection=tables["model_selection"],
        comparisons=tables["comparisons"],
    )
    return _write_files(config, cells, content, tables)


def read_report(config: Experiment) -> dict[str, Any]:
    """Return the content of the experiment's report.json.

    Raises:
        StorageError: the file does not exist.
    """
    content: dict[str, Any] = storage.read_json(storage.join(config.stage_folder("report"), JSON_FILE))
    return content


def _build_tables(
    config: Experiment,
    cells: Sequence[RunGraph],
    predictions: Sequence[Predictions],
    aggregates: Sequence[SeedAggregate],
) -> dict[str, list[Any]]:
    """Return the tables of report.json by key."""
    languages, emotions = config.languages, config.emotions
    models = [single_model(model) for model in predictions]
    tables: dict[str, list[Any]] = {
        "results": [row for model in models for row in build_rows(model, languages, emotions)],
        "pooled": [row for part in aggregates for row in build_rows(part, languages, emotions, summarized=languages)],
        "comparisons": comparisons.compare_aggregates(aggregates),
        "model_selection": model_selection.compare_settings(model_selection.compute_dev_scores(cells)),
        "language_conditions": language_conditions.score_cells(cells),
    }
    verdicts.decide(_list_tests(tables))
    return tables


def _list_tests(tables: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return the rows of all tests, which are adjusted for each other."""
    return [row for name in ("comparisons", "model_selection") for row in tables[name] if row["verdict"] is not None]


def _write_files(
    config: Experiment, cells: Sequence[RunGraph], content: html_report.ReportContent, tables: dict[str, list[Any]]
) -> str:
    folder = config.stage_folder("report")
    fingerprint = {"stage": "report", "inputs": content.inputs}
    html = html_report.render_report(content)
    report = {
        "experiment": config.name,
        "emotions": config.emotions,
        "corpora": [
            {"name": corpus.name, "importer": corpus.importer, "synthetic": corpus.is_synthetic}
            for corpus in config.corpora
        ],
        "cells": [
            {"fold": cell.config.fold, "seed": cell.config.seed, "variant": cell.config.variant} for cell in cells
        ],
        "notes": [*content.warnings, *content.findings, *content.notes],
    }
    record.mark_started(folder, fingerprint, replace=True)
    storage.write_json(storage.join(folder, JSON_FILE), report | tables)
    storage.write_bytes(storage.join(folder, HTML_FILE), html.encode())
    record.mark_finished(folder, fingerprint, [JSON_FILE, HTML_FILE])
    return storage.join(folder, HTML_FILE)


def _describe_scope(cells: Sequence[RunGraph]) -> str:
    folds, seeds = (sorted({getattr(cell.config, name) for cell in cells}) for name in ("fold", "seed"))
    return f"{_format_numbers('Fold', folds)}, {_format_numbers('seed', seeds)}"


def _format_numbers(name: str, numbers: Sequence[int]) -> str:
    return f"{name}{'s' * (len(numbers) > 1)} {' and '.join(map(str, numbers))}"


def _input_name(cells: Sequence[RunGraph], predictions: Predictions) -> str:
    return predictions.model if len(cells) == 1 else f"{predictions.model} fold {predictions.fold}"


def _utterance_count_note(cells: Sequence[RunGraph], aggregates: Sequence[SeedAggregate]) -> list[str]:
    """Describe what is averaged in a grid: utterances, repeated folds and seeds."""
    if len(cells) == 1:
        return []
    models = [model for aggregate in aggregates if aggregate.is_student for model in aggregate.by_seed.values()]
    counts = {model.num_utterances for model in models}
    least, most = min(counts), max(counts)
    total = f"{most}" if least == most else f"{least} to {most}; runs are missing"
    repeated = any(len(model.utterance_N) > model.num_utterances for model in models)
    return [
        f"Each test utterance weighs one per seed ({total}). "
        + ("Predictions of an utterance by models of several folds share this weight. " if repeated else "")
        + "Scores are means over seeds."
    ]


def _summary_measure_note(config: Experiment) -> list[str]:
    """Describe the two columns that summarize the languages."""
    if len(config.languages) == 1:
        return []
    return [
        "`mean` is the mean over languages, each with the same weight: epochs, trials and students are selected on dev "
        "by this measure, and findings quote it. `all` pools the utterances, so larger corpora dominate it."
    ]
