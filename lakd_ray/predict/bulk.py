"""A bulk prediction: a folder, bucket or manifest of recordings in, Parquet out, by Ray Data on any number of workers.

    <out>/
      record.json                      which model, inputs and settings it is of; when it was finished, and a summary
      predictions/part-NNNNN.parquet   a row for each recording (lakd_ray.schema.answers), in the order of the inputs
      quarantine.parquet               those of them without an answer, and why

A part is written whole or not at all, and is not computed again: what was interrupted goes on. Only parts with
recordings that could not be read for a passing reason (lakd_ray.schema.TRANSIENT) are, by the next run.
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

from lakd_ray import records, schema, storage
from lakd_ray.config import Backend, Section, absolute, dump
from lakd_ray.errors import CheckpointError, ConfigError, DataError, ResourceError, StorageError
from lakd_ray.models.checkpoint import read_card_at
from lakd_ray.predict import inputs
from lakd_ray.predict.inputs import Entry
from lakd_ray.predict.worker import Worker

PREDICTIONS, QUARANTINE_FILE = "predictions", "quarantine.parquet"

OBJECT_STORE_MB = 100  # enough of one: recordings do not travel through it, only their names

_LOOKED_AT = ["id", "path", "status", "kind", "reason", "emotion", "duration_s"]
_READERS = 16
_DECIDING = ("backend", "language", "max_seconds", "part_files")


class Bulk(Section):
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


def settings(**values: Any) -> Bulk:
    """Settings from the command line, with absolute places.

    Raises:
        ConfigError: one is impossible, or relative although this runs as a Ray job.
    """
    try:
        bulk = Bulk.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        found = [f"{item['loc'][0]} {item['input']!r}: {item['msg']}" for item in error.errors()]
        raise ConfigError("refused: " + "; ".join(found)) from None
    places = {
        "input": absolute(bulk.input, f"the input {bulk.input!r}", "/path or s3://bucket/prefix"),
        "out": absolute(bulk.out, f"the output folder {bulk.out!r}", "/path or s3://bucket/prefix"),
        "model": absolute(bulk.model, f"the model {bulk.model!r}", "--model /path"),
    }
    return bulk.model_copy(update=places)


@dataclass(frozen=True)
class Summary:
    """What came of it."""

    recordings: int
    hours: float
    answered: dict[str, int]
    """How many, by emotion."""
    quarantined: dict[str, int]
    """How many, by kind."""

    def __str__(self) -> str:
        answered, refused = sum(self.answered.values()), sum(self.quarantined.values())
        return (
            f"{self.recordings} recordings, {self.hours:.2f} h: {answered} answered{_counts(self.answered)}, "
            f"{refused} quarantined{_counts(self.quarantined)}"
        )


def _counts(counts: dict[str, int]) -> str:
    told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f" ({told})" if told else ""


@dataclass(frozen=True)
class _Part:
    place: str
    entries: list[Entry]


def run(bulk: Bulk) -> Summary:
    """Predict everything that is not predicted yet, in the Ray session this process is connected to.

    Raises:
        DataError: there are no inputs, they cannot be used, none of them could be answered, or rows are missing.
        StageError: the folder holds predictions of another model, other inputs or with other settings.
        StorageError, CheckpointError: there is no such model, or something cannot be read or written.
        ResourceError: the cluster is too small.
    """
    emotions, model = _model(bulk.model)
    found = inputs.find(bulk.input)
    made_by = _made_by(bulk, model, found, emotions)
    parts = _plan(bulk, found.entries)
    done = records.is_done(bulk.out, made_by)
    tables = _whole(parts, retried=True)
    missing = [part for part in parts if part.place not in tables]
    if done and not missing:
        print(f"predict: already done, {bulk.out}")
        return _told(bulk, list(tables.values()))
    workers = _workers(bulk, len(missing))
    records.start(bulk.out, made_by)
    _predict(bulk, missing, len(found.entries), workers)
    tables |= _whole(missing, retried=False)
    return _finish(bulk, made_by, parts, tables)


def _model(folder: str) -> tuple[tuple[str, ...], str]:
    """A model's emotions and version."""
    seal = storage.join(folder, storage.SEAL)
    if not storage.exists(seal):
        raise CheckpointError(f"{folder} holds no finished checkpoint ({storage.SEAL} is missing); check --model")
    return read_card_at(folder).emotions, records.digest(storage.read_json(seal))


def _made_by(bulk: Bulk, model: str, found: inputs.Inputs, emotions: Sequence[str]) -> dict[str, Any]:
    return {
        "stage": "predict",
        "model": model,
        "inputs": {"place": bulk.input, "recordings": len(found.entries), "digest": found.digest},
        **{name: value for name, value in dump(bulk).items() if name in _DECIDING},
        "columns": schema.answers(emotions).names,
    }


def _plan(bulk: Bulk, entries: list[Entry]) -> list[_Part]:
    folder, size = storage.join(bulk.out, PREDICTIONS), bulk.part_files
    starts = range(0, len(entries), size)
    return [
        _Part(storage.join(folder, f"part-{number:05d}.parquet"), entries[start : start + size])
        for number, start in enumerate(starts)
    ]


def _whole(parts: Sequence[_Part], *, retried: bool) -> dict[str, pa.Table]:
    """Those of the parts that are there and whole: place -> what is looked at.

    Args:
        retried: leave out those with recordings that may be readable by now.
    """
    if not parts:
        return {}
    there = {info.name for info in storage.list_files(parts[0].place.rpartition("/")[0])}

    def read(part: _Part) -> pa.Table | None:
        if part.place.rpartition("/")[2] not in there:
            return None
        try:
            table = storage.read_table(part.place, columns=_LOOKED_AT)
        except StorageError as error:
            print(f"predict: {part.place} cannot be read, it is made anew ({error})")
            return None
        again = retried and not schema.TRANSIENT.isdisjoint(table["kind"].to_pylist())
        return table if table["id"].to_pylist() == [entry.id for entry in part.entries] and not again else None

    with ThreadPoolExecutor(_READERS) as pool:
        found = zip(parts, pool.map(read, parts), strict=True)
        return {part.place: table for part, table in found if table is not None}


def _predict(bulk: Bulk, missing: Sequence[_Part], total: int, workers: int) -> None:
    """Answer some parts and write them."""
    if not missing:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [
        {"part": part.place, "entries": json.dumps([list(vars(one).values()) for one in part.entries])}
        for part in missing
    ]
    written = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=(bulk.model, bulk.cpus, bulk.language, bulk.max_seconds, bulk.backend),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=bulk.cpus,
        num_gpus=1 if bulk.gpu else 0,
    )
    sizes = {part.place: len(part.entries) for part in missing}
    waiting = sum(sizes.values())
    print(f"predict: {waiting} of {total} recordings in {len(missing)} parts, {workers} workers")
    with tqdm(total=total, initial=total - waiting, desc="predict", unit="file", mininterval=2) as bar:
        for row in written.iter_rows():
            if row["error"]:
                raise StorageError(row["error"])
            bar.update(sizes[row["part"]])


def _workers(bulk: Bulk, parts: int) -> int:
    """How many there are to be; never more than parts."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # untyped in Ray
    room = int(have.get("CPU", 0) // bulk.cpus)
    if bulk.gpu:
        room = min(room, int(have.get("GPU", 0)))
    if room < (bulk.workers or 1):
        each = f"{bulk.cpus} CPUs" + (" and a GPU" if bulk.gpu else "") + " each"
        raise ResourceError(
            f"the cluster has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs, but {bulk.workers or 1} "
            f"workers with {each} were asked for: lower --workers or --cpus, leave out --gpu, or add nodes"
        )
    return min(bulk.workers or room, parts)


def _finish(bulk: Bulk, made_by: dict[str, Any], parts: Sequence[_Part], tables: dict[str, pa.Table]) -> Summary:
    lost = [part.place for part in parts if part.place not in tables]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(parts)} parts are not what was asked for, the first {lost[0]}: is another process "
            "writing there? Run the same command again"
        )
    planned = {part.place.rpartition("/")[2] for part in parts}
    for info in storage.list_files(storage.join(bulk.out, PREDICTIONS)):
        if info.name not in planned:  # what a killed process was writing
            storage.delete(info.location)
    looked_at = pa.concat_tables([tables[part.place] for part in parts])
    refused = looked_at.filter(pc.equal(looked_at["status"], "quarantined"))
    storage.write_table(
        storage.join(bulk.out, QUARANTINE_FILE), refused.select(schema.UNANSWERED.names).cast(schema.UNANSWERED)
    )
    records.finish(bulk.out, made_by, [QUARANTINE_FILE], summary=vars(_summary([looked_at])))
    return _told(bulk, [looked_at])


def _summary(tables: Sequence[pa.Table]) -> Summary:
    looked_at = pa.concat_tables(tables)
    emotions, kinds = (Counter(looked_at[name].drop_null().to_pylist()) for name in ("emotion", "kind"))
    hours = (pc.sum(looked_at["duration_s"]).as_py() or 0.0) / 3600
    return Summary(len(looked_at), hours, dict(emotions), dict(kinds))


def _told(bulk: Bulk, tables: Sequence[pa.Table]) -> Summary:
    summary = _summary(tables)
    print(f"predict: {summary} -> {storage.join(bulk.out, PREDICTIONS)}")
    if summary.quarantined:
        print(f"predict: the reasons are in {storage.join(bulk.out, QUARANTINE_FILE)}")
    if not summary.answered:
        raise DataError(f"none of the {summary.recordings} recordings could be answered: see the reasons")
    return summary
