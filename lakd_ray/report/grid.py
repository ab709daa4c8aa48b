"""The report over all cells of an experiment's grid: the files of one cell, results pooled over folds and seeds."""

from collections.abc import Sequence

from lakd_ray import records, storage
from lakd_ray.config import Experiment
from lakd_ray.errors import StageError
from lakd_ray.labels import POOLED
from lakd_ray.report import HTML, JSON, describe, dev, findings, page
from lakd_ray.report import languages as languages_told
from lakd_ray.report.pooled import Pool, comparisons, pools
from lakd_ray.report.pooled import rows_of as pooled_rows
from lakd_ray.report.predictions import TEACHER, Predictions, read_one
from lakd_ray.report.rows import Row, percent, rows_of
from lakd_ray.runs import predictions_folder, student_runs, teacher_runs

_PAPER = (
    "Published by Bijoy et al. (Interspeech 2025) for their multi-teacher student: WR 72.9 % on English (IEMOCAP) and "
    "UR 63.4 % on Finnish (FESC). Theirs is another division into dev and test, and other seeds."
)


def run(config: Experiment, cells: Sequence[Experiment], missing: Sequence[str] = ()) -> str:
    """Write report.json and report.html over all predictions that are there; always made anew.

    Args:
        cells: the experiment with each fold, seed and variant.
        missing: runs that failed; the report says so.

    Returns:
        Where report.html lies.

    Raises:
        StageError: there are no predictions.
        DataError: a file of predictions is damaged.
    """
    folder = config.stage_folder("report")
    found = _read(cells)
    if not any(one.is_student for one in found):
        raise StageError(
            f"no student's predictions in {config.stage_folder('evaluate')}: train and evaluate some first"
        )
    languages, emotions = config.languages, config.emotions
    together = sorted(pools(found), key=lambda pool: (pool.paradigm != TEACHER, pool.setup, pool.variant or ""))
    headline = [row for pool in together for row in pooled_rows(pool, languages, emotions)]
    rows = [row for one in found for row in rows_of(one, languages, emotions)]
    chosen = dev.rows(dev.standings(cells))
    aware = languages_told.pooled(cells)
    said = [
        findings.best([row for row in headline if row["paradigm"] != TEACHER]),
        *dev.sentences(chosen),
        *comparisons(together, emotions),
    ]
    warnings = findings.synthetic(config)
    notes = [
        _counted(together),
        *languages_told.sentences(aware),
        *findings.cautions(config, found),
        *_published(config),
        *_failed(missing),
    ]
    inputs = {f"{one.model} fold {one.fold}": one.digest for one in found}
    made_by = {"stage": "report", "inputs": inputs}
    html = page.render(
        page.Content(
            config=config,
            scope=_scope(cells),
            findings=said,
            warnings=warnings,
            notes=notes,
            rows=rows,
            headline=headline,
            curves=(),
            inputs=inputs,
            languages=languages_told.lines(aware),
            dev=chosen,
        )
    )
    records.start(folder, made_by)
    tables = {"results": rows, "pooled": headline, "dev": chosen, "languages": aware}
    told = {"notes": [*warnings, *said, *notes], **tables}
    storage.write_json(storage.join(folder, JSON), describe(config) | told)
    storage.write_bytes(storage.join(folder, HTML), html.encode())
    records.finish(folder, made_by, [JSON, HTML])
    return storage.join(folder, HTML)


def _read(cells: Sequence[Experiment]) -> list[Predictions]:
    """What is there of all cells' predictions, each file once."""
    found: dict[str, Predictions] = {}
    listed: dict[str, set[str]] = {}
    for cell in cells:
        folder = predictions_folder(cell)
        if folder not in listed:
            listed[folder] = {info.name for info in storage.list_files(folder)}
        for run in (*teacher_runs(cell), *student_runs(cell)):
            location = storage.join(folder, f"{run.id}.parquet")
            if f"{run.id}.parquet" in listed[folder] and location not in found:
                found[location] = read_one(location, cell)
    return list(found.values())


def recalls(rows: Sequence[Row], emotions: Sequence[str]) -> str:
    """Recall of each emotion over all languages, for the terminal, in percent."""
    chosen = [row for row in rows if row["language"] == POOLED and row["paradigm"] != TEACHER]
    width = max(len(row["model"]) for row in chosen)
    lines = ["recall".ljust(width) + "".join(emotion.rjust(12) for emotion in emotions)]
    lines += [
        row["model"].ljust(width) + "".join(percent(row["recall"][emotion]).rjust(12) for emotion in emotions)
        for row in chosen
    ]
    return "\n".join(lines)


def _scope(cells: Sequence[Experiment]) -> str:
    folds, seeds = (sorted({getattr(cell, name) for cell in cells}) for name in ("fold", "seed"))
    return f"Folds {', '.join(map(str, folds))}; seeds {', '.join(map(str, seeds))}"


def _counted(found: Sequence[Pool]) -> str:
    counts = {len(one.labels_N) for pool in found if pool.paradigm != TEACHER for one in pool.by_seed.values()}
    least, most = min(counts), max(counts)
    each = f"{most}" if least == most else f"{least} to {most} (runs are missing)"
    return (
        f"Each test utterance counts once for each seed: {each} of them. Scores are means over seeds; intervals are "
        "95 % bootstraps over speakers and seeds."
    )


def _published(config: Experiment) -> list[str]:
    return [_PAPER] if {"iemocap", "fesc"} & {corpus.importer for corpus in config.corpora} else []


def _failed(missing: Sequence[str]) -> list[str]:
    return [f"Failed, and not in the table: {', '.join(missing)}."] if missing else []
