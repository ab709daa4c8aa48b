"""Planned batches as a Ray Data stream: each window is read and decoded by a task, batches arrive in the plan's order.

Audio travels as 16-bit samples, half the size of floats and exactly what the shards hold; cached features as 16-bit
floats, exactly as they are stored.

Shape suffixes: T samples, F frames, H channels of the feature encoder.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data

from lakd_ray import storage
from lakd_ray.audio import decode_flac, to_float
from lakd_ray.data.batch_plan import ReadGroup
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.errors import DataError
from lakd_ray.grouping import group_by_budget

# Share of the object store that one execution of Ray Data may fill. Ray Data runs in a thread of the process that
# trains, and while it waits for the reader to take what is ready it does not sleep: that thread takes most of a core,
# and training is less than half as fast. What fits is soon complete, and then the thread ends.
_OBJECT_STORE_FRACTION = 1 / 8
_SAMPLES_PER_FRAME = 320  # of the families' feature encoders: 20 ms

Signal = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ShardSource:
    """Which files hold what the manifest's rows name: the shards, or cached features with the same rows."""

    files: tuple[str, ...]
    """In the order of `Manifest.shards`."""
    feature_dim: int = 0
    """Of cached features; 0 stands for audio."""

    @property
    def column(self) -> str:
        """The column that is read."""
        return "features" if self.feature_dim else "audio"

    def decode(self, content: bytes) -> npt.NDArray[Any]:
        """A stored entry as it travels, flat: 16-bit samples, or features."""
        return np.frombuffer(content, dtype=np.float16) if self.feature_dim else decode_flac(content)

    def to_signal(self, flat: npt.NDArray[Any]) -> Signal:
        """What arrives, from what travels."""
        return flat.reshape(-1, self.feature_dim).astype(np.float32) if self.feature_dim else to_float(flat)


@dataclass(frozen=True)
class AudioBatch:
    """A batch as it arrives.

    Attributes:
        epoch, split: where the batch belongs.
        rows: manifest row numbers.
        signals: one array each: samples in [-1, 1], shape [T], or cached features, shape [F, H].
    """

    epoch: int
    split: str
    rows: RowIndices
    signals: list[Signal]


def stream_batches(
    manifest: Manifest,
    read_groups: Iterable[ReadGroup],
    *,
    source: ShardSource | None = None,
    num_cpus: float = 1.0,
    num_readers: int = 1,
) -> Iterator[AudioBatch]:
    """Read windows in order. Reading begins with this call, before the first batch is asked for.

    Args:
        source: what is read; the shards' audio if None.
        cpus: logical CPUs that reading and decoding may use at the same time.
        readers: processes of the cluster that stream at the same time, this one included.

    Raises:
        DataError: what was read is not what was planned.
        StorageError: a shard cannot be read.
    """
    source = source or ShardSource(manifest.shards)
    chunks = _chunk_read_groups(manifest, read_groups, source, _execution_budget(num_readers))
    pool = ThreadPoolExecutor(1, "stream")

    def begin() -> Future[StartedExecution] | None:
        """Start the next execution, if there is one: the number of its batches and the batches."""
        chunk = next(chunks, [])
        return pool.submit(_wait_for_first_batch, _execute(manifest, chunk, source, num_cpus), chunk) if chunk else None

    return _chain_executions(pool, begin(), begin)


StartedExecution = tuple[int, Iterator[AudioBatch]]


def _wait_for_first_batch(batches: Iterator[AudioBatch], read_groups: list[ReadGroup]) -> StartedExecution:
    return sum(len(window.batches) for window in read_groups), chain([next(batches)], batches)


def _chain_executions(
    pool: ThreadPoolExecutor,
    pending: Future[StartedExecution] | None,
    start_next: Callable[[], Future[StartedExecution] | None],
) -> Iterator[AudioBatch]:
    """The batches of one execution after the other; the next one begins when half of one has been taken."""
    with pool:
        while pending is not None:
            count, batches = pending.result()
            pending = None
            for index, batch in enumerate(batches):
                yield batch
                if index == count // 2:
                    pending = start_next()


def _chunk_read_groups(
    manifest: Manifest, read_groups: Iterable[ReadGroup], source: ShardSource, budget: float
) -> Iterator[list[ReadGroup]]:
    """Windows that are executed together: as many as fill a budget of bytes.

    A window that is larger comes in parts, at least a batch each. Each part reads all of the window's row groups again,
    which costs less than an object store that has to spill what was decoded.
    """
    per_sample = 2 * source.feature_dim / _SAMPLES_PER_FRAME if source.feature_dim else 2

    def size(batch: RowIndices) -> float:
        return per_sample * int(manifest.num_samples_N[batch].sum())

    parts = chain.from_iterable(_split_read_group(window, size, budget) for window in read_groups)
    return group_by_budget(parts, lambda part: sum(map(size, part.batches)), budget)


def _split_read_group(
    read_group: ReadGroup, size_of_batch: Callable[[RowIndices], float], budget: float
) -> Iterator[ReadGroup]:
    """The window, or consecutive parts of it if it is over the budget."""
    if sum(map(size_of_batch, read_group.batches)) <= budget:
        yield read_group
        return
    for batches in group_by_budget(read_group.batches, size_of_batch, budget):
        yield replace(read_group, batches=tuple(batches))


def _execution_budget(num_readers: int) -> float:
    """Bytes for one execution, when every reader has one at work and one that is coming."""
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # untyped in Ray
    return _OBJECT_STORE_FRACTION * cluster.get("object_store_memory", 0.0) / num_readers


def build_dataset(manifest: Manifest, read_groups: list[ReadGroup], source: ShardSource) -> ray.data.Dataset:
    """One row per planned batch, in order: `rows`, `lengths` and `signals` (16-bit numbers, concatenated)."""
    configure_data_context()
    requests = ray.data.from_arrow([make_read_request(manifest, window) for window in read_groups])
    return requests.map_batches(
        partial(read_batches, source=source), batch_size=None, batch_format="pyarrow", num_cpus=1
    )


def configure_data_context() -> ray.data.DataContext:
    """This process's Ray Data context: outputs in the order of inputs, no progress bars of its own."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    return context


def _execute(
    manifest: Manifest, read_groups: list[ReadGroup], source: ShardSource, num_cpus: float
) -> Iterator[AudioBatch]:
    """One execution of Ray Data over some windows."""
    context = configure_data_context()
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(cpu=num_cpus)
    arriving = build_dataset(manifest, read_groups, source).iter_batches(
        batch_size=1, batch_format="pyarrow", prefetch_batches=2
    )
    planned = ((window, rows) for window in read_groups for rows in window.batches)
    for (window, rows), table in zip(planned, arriving, strict=True):
        found = table["rows"][0].as_py()
        if found != rows.tolist():
            raise DataError(
                f"batch out of order in epoch {window.epoch}: expected rows {rows[:4]}.., found {found[:4]}.."
            )
        yield AudioBatch(window.epoch, window.split, rows, unpack_signals(table, source))


def make_read_request(manifest: Manifest, read_group: ReadGroup) -> pa.Table:
    """A window as one Arrow row: which rows of which row groups, in which batches."""
    rows = np.concatenate(read_group.batches)
    columns = {
        "rows": rows,
        "sizes": np.array([len(batch) for batch in read_group.batches]),
        "shard": manifest.shard_N[rows],
        "row_group": manifest.row_group_N[rows],
        "row": manifest.row_N[rows],
    }
    return pa.table({name: pa.array([values], type=pa.list_(pa.int64())) for name, values in columns.items()})


def read_batches(requests: pa.Table, source: ShardSource) -> Iterator[pa.Table]:
    """Read the row groups of a window once and yield its batches (runs in a Ray Data task)."""
    for request in requests.to_pylist():
        places = list(zip(request["shard"], request["row_group"], request["row"], strict=True))
        entries = _read_row_groups(source, {(shard, row_group) for shard, row_group, _ in places})
        start = 0
        for size in request["sizes"]:
            flat = [
                source.decode(entries[shard, row_group][row].as_py())
                for shard, row_group, row in places[start : start + size]
            ]
            yield _pack_batch(request["rows"][start : start + size], flat)
            start += size


def _read_row_groups(source: ShardSource, row_groups: set[tuple[int, int]]) -> dict[tuple[int, int], Any]:
    """The source's column of some row groups."""
    found = {}
    for index in sorted({index for index, _ in row_groups}):
        groups = sorted(group for of, group in row_groups if of == index)
        tables = storage.read_row_groups(source.files[index], groups, [source.column])
        for group, table in zip(groups, tables, strict=True):
            found[index, group] = table[source.column]
    return found


def _pack_batch(rows: list[int], arrays: list[npt.NDArray[Any]]) -> pa.Table:
    return pa.table(
        {
            "rows": pa.array([rows], type=pa.list_(pa.int64())),
            "lengths": pa.array([[len(each) for each in arrays]], type=pa.list_(pa.int64())),
            "signals": pa.array([np.concatenate(arrays).tobytes()], type=pa.large_binary()),
        }
    )


def unpack_signals(table: pa.Table, source: ShardSource) -> list[Signal]:
    """The signals of a one-row table of `dataset`."""
    flat = np.frombuffer(table["signals"][0].as_buffer(), dtype=np.float16 if source.feature_dim else np.int16)
    ends = np.cumsum(table["lengths"][0].as_py())
    return [source.to_signal(part) for part in np.split(flat, ends[:-1])]
