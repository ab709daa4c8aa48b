"""Bulk prediction from a folder, bucket or manifest of recordings to Parquet, with Ray Data on any number of workers.

    <out>/
      record.json                      model, inputs and settings of the predictions, time of completion, summary
      predictions/part-NNNNN.parquet   one row per recording, in input order (schema.bulk_predictions_schema)
      quarantine.parquet               the recordings without a prediction, with the reasons

Parts are written atomically, and an interrupted prediction resumes with the missing parts. The next run repeats only
parts with recordings that could not be read for a transient reason (lakd_ray.data.schema.TRANSIENT_KINDS).
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from pydantic import Field, ValidationError, model_validator

from lakd_ray import storage
from lakd_ray.cluster import Bundle, all_nodes, capacity, wait_for_room, watched_room
from lakd_ray.config import Backend, ClusterConfig, Section, resolve_location, to_dict, validate_backend_device
from lakd_ray.data import schema
from lakd_ray.errors import CheckpointError, ConfigError, DataError, ResourceError, StorageError
from lakd_ray.inference.bulk import inputs
from lakd_ray.inference.bulk.inputs import InputEntry
from lakd_ray.inference.bulk.worker import BulkWorker
from lakd_ray.inference.options import LANGUAGE_PATTERN
from lakd_ray.models.checkpoint import read_metadata
from lakd_ray.progress import progress_bar
from lakd_ray.runs import record

PREDICTIONS_FOLDER, QUARANTINE_FILE = "predictions", "quarantine.parquet"

OBJECT_STORE_MB = 100  # the object store holds only the names of recordings

logger = logging.getLogger(__name__)

_SUMMARY_COLUMNS = ["id", "path", "status", "kind", "reason", "emotion", "duration_s"]
_READ_THREADS = 16
_FINGERPRINT_FIELDS = ("backend", "language", "max_seconds", "part_files")


class BulkConfig(Section):
    """Settings of a bulk prediction: inputs, outputs, model and resources."""

    input: str
    """Folder or s3://bucket/prefix with recordings, or a manifest of recordings (CSV, JSON lines or Parquet)."""
    out: str
    """Folder for the predictions, which holds nothing else."""
    model: str
    """Checkpoint folder, for instance one that `lakd export` made."""
    workers: int | None = Field(None, ge=1)
    """Number of copies of the model; as many as fit into the cluster if absent."""
    cpus: int = Field(1, ge=1)
    """Logical CPUs of a worker; also its number of torch threads and of decoding processes."""
    gpus: float = Field(0.0, ge=0, le=1)
    """GPU of each worker, or a fraction of a GPU that several workers share; 0: workers run on CPUs."""
    backend: Backend = "torch"
    """Inference backend. ONNX backends use the graph in the checkpoint folder (`lakd export --onnx`);
    without one each worker exports its own."""
    language: str | None = Field(None, pattern=LANGUAGE_PATTERN)
    """Language of recordings without one in the manifest; if absent, the model identifies it."""
    max_seconds: float = Field(120.0, gt=0)
    """Longer recordings are quarantined."""
    part_files: int = Field(256, ge=1)
    """Recordings per part; an interruption loses at most one part per worker."""

    @model_validator(mode="after")
    def _validate_backend_device(self) -> Self:
        validate_backend_device(self.backend, self.gpus, "--gpus")
        return self


def parse_settings(**values: Any) -> BulkConfig:
    """Return settings from the command line, with absolute paths.

    Raises:
        ConfigError: a value is invalid, or a path is relative in a Ray job.
    """
    try:
        bulk = BulkConfig.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        problems = [
            f"{item['loc'][0]} {item['input']!r}: {item['msg']}" if item["loc"] else str(item["ctx"]["error"])
            for item in error.errors()
        ]
        raise ConfigError("invalid settings: " + "; ".join(problems)) from None
    locations = {
        "input": resolve_location(bulk.input, f"the input {bulk.input!r}", "/path or s3://bucket/prefix"),
        "out": resolve_location(bulk.out, f"the output folder {bulk.out!r}", "/path or s3://bucket/prefix"),
        "model": resolve_location(bulk.model, f"the model {bulk.model!r}", "--model /path"),
    }
    return bulk.model_copy(update=locations)


@dataclass(frozen=True)
class BulkSummary:
    """Counts of a finished bulk prediction."""

    recordings: int
    hours: float
    predicted: dict[str, int]
    """Number of recordings by emotion."""
    quarantined: dict[str, int]
    """Number of recordings by quarantine kind."""

    def __str__(self) -> str:
        predicted, quarantined = sum(self.predicted.values()), sum(self.quarantined.values())
        return (
            f"{self.recordings} recordings, {self.hours:.2f} h: {predicted} predicted{_format_counts(self.predicted)}, "
            f"{quarantined} quarantined{_format_counts(self.quarantined)}"
        )


def _format_counts(counts: dict[str, int]) -> str:
    text = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f" ({text})" if text else ""


@dataclass(frozen=True)
class _OutputPart:
    path: str
    entries: list[InputEntry]


def run(config: BulkConfig) -> BulkSummary:
    """Predict all recordings without a prediction, in the Ray session of this process.

    Raises:
        DataError: there are no inputs, they are not valid, none of them has a prediction, or rows are missing.
        StageError: the output folder holds predictions of a different model, different inputs or different settings.
        StorageError, CheckpointError: there is no such model, or a file cannot be read or written.
        ResourceError: the cluster is too small.
        LeaseError: a different process is writing to the output folder.
    """
    emotions, model_version = _read_model_info(config.model)
    bulk_inputs = inputs.find_inputs(config.input)
    fingerprint = _fingerprint(config, model_version, bulk_inputs, emotions)
    parts = _plan_parts(config, bulk_inputs.entries)
    done = record.is_done(config.out, fingerprint)
    tables = _read_complete_parts(parts, skip_transient=True)
    missing = [part for part in parts if part.path not in tables]
    if done and not missing:
        logger.info("predict: already done: %s", config.out)
        return _report_summary(config, list(tables.values()))
    workers = _num_workers(config, len(missing))
    with storage.hold(config.out):
        record.mark_started(config.out, fingerprint)
        _predict_parts(config, missing, len(bulk_inputs.entries), workers)
        tables |= _read_complete_parts(missing, skip_transient=False)
        return _finalize(config, fingerprint, parts, tables)


def _read_model_info(folder: str) -> tuple[tuple[str, ...], str]:
    """Return the emotions and the version of a model."""
    seal = storage.join(folder, storage.CHECKSUMS_FILE)
    if not storage.exists(seal):
        raise CheckpointError(
            f"{folder} is not a complete checkpoint folder ({storage.CHECKSUMS_FILE} is missing); check --model"
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
    """Return the summary columns of the parts that are written and intact, by path.

    Args:
        skip_transient: leave out parts with recordings that may be readable now.
    """
    if not parts:
        return {}
    written = {info.name for info in storage.list_files(parts[0].path.rpartition("/")[0])}

    def read(part: _OutputPart) -> pa.Table | None:
        if part.path.rpartition("/")[2] not in written:
            return None
        try:
            table = storage.read_table(part.path, columns=_SUMMARY_COLUMNS)
        except StorageError as error:
            logger.warning("predict: %s cannot be read and is predicted again (%s)", part.path, error)
            return None
        if skip_transient and not schema.TRANSIENT_KINDS.isdisjoint(table["kind"].to_pylist()):
            return None
        return table if table["id"].to_pylist() == [entry.id for entry in part.entries] else None

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        tables = zip(parts, pool.map(read, parts), strict=True)
        return {part.path: table for part, table in tables if table is not None}


def _predict_parts(config: BulkConfig, missing: Sequence[_OutputPart], total_recordings: int, workers: int) -> None:
    """Predict and write the missing parts."""
    if not missing:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [
        {"part": part.path, "entries": json.dumps([list(vars(entry).values()) for entry in part.entries])}
        for part in missing
    ]
    statuses = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        BulkWorker,
        fn_constructor_args=(
            config.model,
            config.cpus,
            config.language,
            config.max_seconds,
            config.backend,
            storage.current_fences(),
        ),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=config.cpus,
        num_gpus=config.gpus,
    )
    sizes = {part.path: len(part.entries) for part in missing}
    remaining = sum(sizes.values())
    logger.info(
        "predict: %d of %d recordings in %d parts, %d workers", remaining, total_recordings, len(missing), workers
    )
    with (
        watched_room("predict: workers", Bundle(config.cpus, config.gpus), ClusterConfig()),
        progress_bar(total_recordings, "predict", "file", initial=total_recordings - remaining) as bar,
    ):
        for status in statuses.iter_rows():
            if status["error"]:
                raise StorageError(status["error"])
            bar.update(sizes[status["part"]])


def _num_workers(config: BulkConfig, num_parts: int) -> int:
    """Return the number of workers, which is at most the number of parts; wait until the cluster has room for them."""
    bundle, nodes = Bundle(config.cpus, config.gpus), all_nodes()
    room, minimum = capacity(bundle, nodes), config.workers or 1
    if room < minimum:
        cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
        raise ResourceError(
            f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs, but {minimum} workers with {bundle} each are requested, "
            f"and its nodes hold {room}: lower --workers, --cpus or --gpus, or add nodes"
        )
    workers = min(config.workers or room, num_parts)
    if workers:
        needed = min(workers, minimum)
        wait_for_room(f"predict: {needed} workers with {bundle} each", bundle, needed, ClusterConfig())
    return workers


def _finalize(
    config: BulkConfig, fingerprint: dict[str, Any], parts: Sequence[_OutputPart], tables: dict[str, pa.Table]
) -> BulkSummary:
    invalid = [part.path for part in parts if part.path not in tables]
    if invalid:
        raise DataError(
            f"{len(invalid)} of {len(parts)} parts do not have the expected rows, the first is {invalid[0]}: is a "
            "second process writing to this folder? Run the same command again"
        )
    planned = {part.path.rpartition("/")[2] for part in parts}
    for info in storage.list_files(storage.join(config.out, PREDICTIONS_FOLDER)):
        if info.name not in planned:  # a partial file of a killed process
            storage.delete(info.location)
    rows = pa.concat_tables([tables[part.path] for part in parts])
    quarantined = rows.filter(pc.equal(rows["status"], "quarantined"))
    storage.write_table(
        storage.join(config.out, QUARANTINE_FILE),
        quarantined.select(schema.BULK_QUARANTINE_SCHEMA.names).cast(schema.BULK_QUARANTINE_SCHEMA),
    )
    record.mark_finished(config.out, fingerprint, [QUARANTINE_FILE], summary=vars(_summarize([rows])))
    return _report_summary(config, [rows])


def _summarize(tables: Sequence[pa.Table]) -> BulkSummary:
    rows = pa.concat_tables(tables)
    emotions, kinds = (Counter(rows[name].drop_null().to_pylist()) for name in ("emotion", "kind"))
    hours = (pc.sum(rows["duration_s"]).as_py() or 0.0) / 3600
    return BulkSummary(len(rows), hours, dict(emotions), dict(kinds))


def _report_summary(config: BulkConfig, tables: Sequence[pa.Table]) -> BulkSummary:
    summary = _summarize(tables)
    quarantine_file = storage.join(config.out, QUARANTINE_FILE)
    logger.info("predict: %s -> %s", summary, storage.join(config.out, PREDICTIONS_FOLDER))
    if summary.quarantined:
        logger.info("predict: the reasons are in %s", quarantine_file)
    if not summary.predicted:
        raise DataError(f"all {summary.recordings} recordings were quarantined: see the reasons in {quarantine_file}")
    return summary
