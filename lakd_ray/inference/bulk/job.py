"""A bulk prediction: a folder, bucket or manifest of recordings in, Parquet out, by Ray Data on any number of workers.

    <out>/
      record.json                      which model, inputs and settings it is of; when it was finished, and a summary
      predictions/part-NNNNN.parquet   a row for each recording (lakd_ray.data.schema.answers), in the order of the inputs
      quarantine.parquet               those of them without an answer, and why

A part is written whole or not at all, and is not computed again: what was interrupted goes on. Only parts with
recordings that could not be read for a passing reason (lakd_ray.data.schema.TRANSIENT_KINDS) are, by the next run.
"""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from pydantic import Field, ValidationError
from tqdm import tqdm

from lakd_ray import storage
from lakd_ray.config import Backend, Section, resolve_location, to_dict
from lakd_ray.data import schema
from lakd_ray.errors import CheckpointError, ConfigError, DataError, ResourceError, StorageError
from lakd_ray.inference.bulk import inputs
from lakd_ray.inference.bulk.inputs import InputEntry
from lakd_ray.inference.bulk.worker import BulkWorker
from lakd_ray.models.checkpoint import read_metadata
from lakd_ray.runs import record

PREDICTIONS_FOLDER, QUARANTINE_FILE = "predictions", "quarantine.parquet"

OBJECT_STORE_MB = 100  # enough of one: recordings do not travel through it, only their names

_SUMMARY_COLUMNS = ["id", "path", "status", "kind", "reason", "emotion", "duration_s"]
_READ_THREADS = 16
_FINGERPRINT_FIELDS = ("backend", "language", "max_seconds", "part_files")


class BulkConfig(Section):
    """What is predicted, by what, and where to."""

    input: str
    """Folder or s3://bucket/prefix with recordings, or a manifest of them (CSV, JSON lines or Parquet)."""
    out: str
    """A folder of its own for the predictions."""
    model: str
    """Checkpoint folder, for instance one that `lakd export` made."""
    workers: int | None = Field(None, ge=1)
    """Copies of the model; as many as the cluster has room for if absent."""
    cpus: int = Field(1, ge=1)
    """Logical CPUs of one worker; also its torch threads, and the processes by which it decodes."""
    gpu: bool = False
    """One GPU for each worker."""
    backend: Backend = "torch"
    """What computes, as the endpoint's. Workers read a graph that lies in the checkpoint folder (`lakd export --onnx`);
    without one each makes its own."""
    language: str | None = Field(None, pattern="^[a-z]{2,3}$")
    """Language of the recordings, where the manifest tells none; if absent, what the model hears."""
    max_seconds: float = Field(120.0, gt=0)
    """Longer recordings are quarantined."""
    part_files: int = Field(256, ge=1)
    """Recordings of one part; an interrupted run loses no more for each worker."""


def parse_settings(**values: Any) -> BulkConfig:
    """Settings from the command line, with absolute places.

    Raises:
        ConfigError: one is impossible, or relative although this runs as a Ray job.
    """
    try:
        bulk = BulkConfig.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        found = [f"{item['loc'][0]} {item['input']!r}: {item['msg']}" for item in error.errors()]
        raise ConfigError("refused: " + "; ".join(found)) from None
    places = {
        "input": resolve_location(bulk.input, f"the input {bulk.input!r}", "/path or s3://bucket/prefix"),
        "out": resolve_location(bulk.out, f"the output folder {bulk.out!r}", "/path or s3://bucket/prefix"),
        "model": resolve_location(bulk.model, f"the model {bulk.model!r}", "--model /path"),
    }
    return bulk.model_copy(update=places)


@dataclass(frozen=True)
class BulkSummary:
    """What came of it."""

    recordings: int
    hours: float
    predicted: dict[str, int]
    """How many, by emotion."""
    quarantined: dict[str, int]
    """How many, by kind."""

    def __str__(self) -> str:
        answered, refused = sum(self.predicted.values()), sum(self.quarantined.values())
        return (
            f"{self.recordings} recordings, {self.hours:.2f} h: {answered} answered{_format_counts(self.predicted)}, "
            f"{refused} quarantined{_format_counts(self.quarantined)}"
        )


def _format_counts(counts: dict[str, int]) -> str:
    told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f" ({told})" if told else ""


@dataclass(frozen=True)
class _OutputPart:
    path: str
    entries: list[InputEntry]


def run(config: BulkConfig) -> BulkSummary:
    """Predict everything that is not predicted yet, in the Ray session this process is connected to.

    Raises:
        DataError: there are no inputs, they cannot be used, none of them could be answered, or rows are missing.
        StageError: the folder holds predictions of another model, other inputs or with other settings.
        StorageError, CheckpointError: there is no such model, or something cannot be read or written.
        ResourceError: the cluster is too small.
    """
    emotions, model = _read_model_info(config.model)
    found = inputs.find_inputs(config.input)
    fingerprint = _fingerprint(config, model, found, emotions)
    parts = _plan_parts(config, found.entries)
    done = record.is_done(config.out, fingerprint)
    tables = _read_complete_parts(parts, skip_transient=True)
    missing = [part for part in parts if part.path not in tables]
    if done and not missing:
        print(f"predict: already done, {config.out}")
        return _report_summary(config, list(tables.values()))
    workers = _num_workers(config, len(missing))
    record.mark_started(config.out, fingerprint)
    _predict_parts(config, missing, len(found.entries), workers)
    tables |= _read_complete_parts(missing, skip_transient=False)
    return _finalize(config, fingerprint, parts, tables)


def _read_model_info(folder: str) -> tuple[tuple[str, ...], str]:
    """A model's emotions and version."""
    seal = storage.join(folder, storage.CHECKSUMS_FILE)
    if not storage.exists(seal):
        raise CheckpointError(
            f"{folder} holds no finished checkpoint ({storage.CHECKSUMS_FILE} is missing); check --model"
        )
    return read_metadata(folder).emotions, record.folder_fingerprint(folder)


def _fingerprint(
    config: BulkConfig, model_version: str, found_inputs: inputs.BulkInputs, emotions: Sequence[str]
) -> dict[str, Any]:
    return {
        "stage": "predict",
        "model": model_version,
        "inputs": {"location": config.input, "recordings": len(found_inputs.entries), "digest": found_inputs.digest},
        **{name: value for name, value in to_dict(config).items() if name in _FINGERPRINT_FIELDS},
        "columns": schema.bulk_predictions_schema(emotions).names,
    }


def _plan_parts(config: BulkConfig, entries: list[InputEntry]) -> list[_OutputPart]:
    folder, size = storage.join(config.out, PREDICTIONS_FOLDER), config.part_files
    starts = range(0, len(entries), size)
    return [
        _OutputPart(storage.join(folder, f"part-{number:05d}.parquet"), entries[start : start + size])
        for number, start in enumerate(starts)
    ]


def _read_complete_parts(parts: Sequence[_OutputPart], *, skip_transient: bool) -> dict[str, pa.Table]:
    """Those of the parts that are there and whole: place -> what is looked at.

    Args:
        retried: leave out those with recordings that may be readable by now.
    """
    if not parts:
        return {}
    there = {info.name for info in storage.list_files(parts[0].path.rpartition("/")[0])}

    def read(part: _OutputPart) -> pa.Table | None:
        if part.path.rpartition("/")[2] not in there:
            return None
        try:
            table = storage.read_table(part.path, columns=_SUMMARY_COLUMNS)
        except StorageError as error:
            print(f"predict: {part.path} cannot be read, it is made anew ({error})")
            return None
        again = skip_transient and not schema.TRANSIENT_KINDS.isdisjoint(table["kind"].to_pylist())
        return table if table["id"].to_pylist() == [entry.id for entry in part.entries] and not again else None

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        found = zip(parts, pool.map(read, parts), strict=True)
        return {part.path: table for part, table in found if table is not None}


def _predict_parts(config: BulkConfig, missing: Sequence[_OutputPart], total_recordings: int, workers: int) -> None:
    """Answer some parts and write them."""
    if not missing:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [
        {"part": part.path, "entries": json.dumps([list(vars(one).values()) for one in part.entries])}
        for part in missing
    ]
    written = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        BulkWorker,
        fn_constructor_args=(config.model, config.cpus, config.language, config.max_seconds, config.backend),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=config.cpus,
        num_gpus=1 if config.gpu else 0,
    )
    sizes = {part.path: len(part.entries) for part in missing}
    waiting = sum(sizes.values())
    print(f"predict: {waiting} of {total_recordings} recordings in {len(missing)} parts, {workers} workers")
    with tqdm(
        total=total_recordings, initial=total_recordings - waiting, desc="predict", unit="file", mininterval=2
    ) as bar:
        for row in written.iter_rows():
            if row["error"]:
                raise StorageError(row["error"])
            bar.update(sizes[row["part"]])


def _num_workers(config: BulkConfig, num_parts: int) -> int:
    """How many there are to be; never more than parts."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # untyped in Ray
    room = int(have.get("CPU", 0) // config.cpus)
    if config.gpu:
        room = min(room, int(have.get("GPU", 0)))
    if room < (config.workers or 1):
        each = f"{config.cpus} CPUs" + (" and a GPU" if config.gpu else "") + " each"
        raise ResourceError(
            f"the cluster has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs, but {config.workers or 1} "
            f"workers with {each} were asked for: lower --workers or --cpus, leave out --gpu, or add nodes"
        )
    return min(config.workers or room, num_parts)


def _finalize(
    config: BulkConfig, fingerprint: dict[str, Any], parts: Sequence[_OutputPart], tables: dict[str, pa.Table]
) -> BulkSummary:
    lost = [part.path for part in parts if part.path not in tables]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(parts)} parts are not what was asked for, the first {lost[0]}: is another process "
            "writing there? Run the same command again"
        )
    planned = {part.path.rpartition("/")[2] for part in parts}
    for info in storage.list_files(storage.join(config.out, PREDICTIONS_FOLDER)):
        if info.name not in planned:  # what a killed process was writing
            storage.delete(info.location)
    looked_at = pa.concat_tables([tables[part.path] for part in parts])
    refused = looked_at.filter(pc.equal(looked_at["status"], "quarantined"))
    storage.write_table(
        storage.join(config.out, QUARANTINE_FILE),
        refused.select(schema.BULK_QUARANTINE_SCHEMA.names).cast(schema.BULK_QUARANTINE_SCHEMA),
    )
    record.mark_finished(config.out, fingerprint, [QUARANTINE_FILE], summary=vars(_summarize([looked_at])))
    return _report_summary(config, [looked_at])


def _summarize(tables: Sequence[pa.Table]) -> BulkSummary:
    looked_at = pa.concat_tables(tables)
    emotions, kinds = (Counter(looked_at[name].drop_null().to_pylist()) for name in ("emotion", "kind"))
    hours = (pc.sum(looked_at["duration_s"]).as_py() or 0.0) / 3600
    return BulkSummary(len(looked_at), hours, dict(emotions), dict(kinds))


def _report_summary(config: BulkConfig, tables: Sequence[pa.Table]) -> BulkSummary:
    summary = _summarize(tables)
    print(f"predict: {summary} -> {storage.join(config.out, PREDICTIONS_FOLDER)}")
    if summary.quarantined:
        print(f"predict: the reasons are in {storage.join(config.out, QUARANTINE_FILE)}")
    if not summary.predicted:
        raise DataError(f"none of the {summary.recordings} recordings could be answered: see the reasons")
    return summary
