"""Planned batches as a Ray Data stream: each window is read and decoded by a task, batches arrive in the plan's order.

Audio travels as 16-bit samples, half the size of floats and exactly what the shards hold.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from lakd_ray import storage
from lakd_ray.audio import Samples, Wave, decode_flac, to_float
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.data.plan import Window
from lakd_ray.errors import DataError

# Planned utterances in one execution of Ray Data: bounds the driver's memory, and makes its start-up cost negligible.
_PLANNED_UTTERANCES = 1_000_000


@dataclass(frozen=True)
class AudioBatch:
    """A batch as it arrives.

    Attributes:
        epoch, split: where the batch belongs.
        rows: manifest row numbers.
        waves: samples in [-1, 1], one array each.
    """

    epoch: int
    split: str
    rows: Rows
    waves: list[Wave]


def stream(manifest: Manifest, windows: Iterable[Window], *, cpus: float = 1.0) -> Iterator[AudioBatch]:
    """Read windows in order.

    Args:
        cpus: logical CPUs that reading and decoding may use at the same time.

    Raises:
        DataError: what was read is not what was planned.
        StorageError: a shard cannot be read.
    """
    chunk: list[Window] = []
    planned = 0
    for window in windows:
        chunk.append(window)
        planned += sum(map(len, window.batches))
        if planned >= _PLANNED_UTTERANCES:
            yield from _execute(manifest, chunk, cpus)
            chunk, planned = [], 0
    if chunk:
        yield from _execute(manifest, chunk, cpus)


def dataset(manifest: Manifest, windows: list[Window]) -> ray.data.Dataset:
    """One row per planned batch, in order: `rows`, `lengths` (samples) and `audio` (16-bit samples, concatenated)."""
    quiet_and_ordered()
    read = partial(_read_window, shards=manifest.shards)
    source = ray.data.from_arrow([_request(manifest, window) for window in windows])
    return source.map_batches(read, batch_size=None, batch_format="pyarrow", num_cpus=1)


def quiet_and_ordered() -> ray.data.DataContext:
    """This process's Ray Data context: outputs in the order of inputs, no progress bars of its own."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    return context


def _execute(manifest: Manifest, windows: list[Window], cpus: float) -> Iterator[AudioBatch]:
    """One execution of Ray Data over some windows."""
    context = quiet_and_ordered()
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(cpu=cpus)
    arriving = dataset(manifest, windows).iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2)
    planned = ((window, rows) for window in windows for rows in window.batches)
    for (window, rows), table in zip(planned, arriving, strict=True):
        found = table["rows"][0].as_py()
        if found != rows.tolist():
            raise DataError(
                f"batch out of order in epoch {window.epoch}: expected rows {rows[:4]}.., found {found[:4]}.."
            )
        yield AudioBatch(window.epoch, window.split, rows, unpack(table))


def _request(manifest: Manifest, window: Window) -> pa.Table:
    """A window as one Arrow row: which rows of which row groups, in which batches."""
    rows = np.concatenate(window.batches)
    columns = {
        "rows": rows,
        "sizes": np.array([len(batch) for batch in window.batches]),
        "shard": manifest.shard_N[rows],
        "row_group": manifest.row_group_N[rows],
        "row": manifest.row_N[rows],
    }
    return pa.table({name: pa.array([values], type=pa.list_(pa.int64())) for name, values in columns.items()})


def _read_window(table: pa.Table, shards: tuple[str, ...]) -> Iterator[pa.Table]:
    """Read the row groups of a window once and yield its batches (runs in a Ray Data task)."""
    for request in table.to_pylist():
        places = list(zip(request["shard"], request["row_group"], request["row"], strict=True))
        clips = _read_row_groups(shards, {(shard, row_group) for shard, row_group, _ in places})
        start = 0
        for size in request["sizes"]:
            waves = [
                decode_flac(clips[shard, row_group][row].as_py())
                for shard, row_group, row in places[start : start + size]
            ]
            yield _pack(request["rows"][start : start + size], waves)
            start += size


def _read_row_groups(shards: tuple[str, ...], wanted: set[tuple[int, int]]) -> dict[tuple[int, int], Any]:
    """The audio column of some row groups."""
    found = {}
    for shard in sorted({shard for shard, _ in wanted}):
        row_groups = sorted(group for of, group in wanted if of == shard)
        for row_group, table in zip(
            row_groups, storage.read_row_groups(shards[shard], row_groups, ["audio"]), strict=True
        ):
            found[shard, row_group] = table["audio"]
    return found


def _pack(rows: list[int], waves: list[Samples]) -> pa.Table:
    return pa.table(
        {
            "rows": pa.array([rows], type=pa.list_(pa.int64())),
            "lengths": pa.array([[len(wave) for wave in waves]], type=pa.list_(pa.int64())),
            "audio": pa.array([np.concatenate(waves).tobytes()], type=pa.large_binary()),
        }
    )


def unpack(table: pa.Table) -> list[Wave]:
    """The waves of a one-row table of `dataset`."""
    samples = np.frombuffer(table["audio"][0].as_buffer(), dtype=np.int16)
    ends = np.cumsum(table["lengths"][0].as_py())
    return [to_float(part) for part in np.split(samples, ends[:-1])]
