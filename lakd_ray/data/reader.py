"""Stream planned batches with Ray Data: tasks load and decode the read groups, and batches arrive in planned order.

Audio is transferred as 16-bit samples, which are half the size of floats and lossless, and cached features as 16-bit
floats, as they are stored.

Shape suffixes: T samples, F frames, H channels of the feature encoder.
"""

import warnings
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
from ray.util.annotations import RayDeprecationWarning
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lakd_ray import storage
from lakd_ray.audio import decode_flac, to_float
from lakd_ray.data.batch_plan import ReadGroup
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.errors import DataError
from lakd_ray.grouping import group_by_budget

# Share of the object store that one execution of Ray Data may fill. Ray Data runs in a thread of the training process
# and busy-waits until its outputs are consumed, which takes most of a core and more than halves the training speed. An
# execution whose outputs fit into the object store completes early, and its thread ends.
_OBJECT_STORE_FRACTION = 1 / 8
_SAMPLES_PER_FRAME = 320  # 20 ms, in the feature encoders of all families

Signal = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ShardSource:
    """The files to read manifest rows from: the shards, or cached features with the same rows."""

    files: tuple[str, ...]
    """File locations in the order of `Manifest.shards`."""
    feature_dim: int = 0
    """H of cached features; 0 for audio."""

    @property
    def column(self) -> str:
        """The column of the files to read."""
        return "features" if self.feature_dim else "audio"

    def decode(self, content: bytes) -> npt.NDArray[Any]:
        """Decode a stored entry to a flat array for the transfer: 16-bit samples, or features."""
        return np.frombuffer(content, dtype=np.float16) if self.feature_dim else decode_flac(content)

    def to_signal(self, flat: npt.NDArray[Any]) -> Signal:
        """Convert a transferred flat array to the signal of a batch."""
        return flat.reshape(-1, self.feature_dim).astype(np.float32) if self.feature_dim else to_float(flat)


@dataclass(frozen=True)
class AudioBatch:
    """A batch of decoded signals.

    Attributes:
        epoch, split: those of the batch's read group.
        rows: manifest row numbers.
        signals: one array for each row: samples in [-1, 1], shape [T], or cached features, shape [F, H].
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
    num_cpus: int = 1,
    num_readers: int = 1,
) -> Iterator[AudioBatch]:
    """Yield the batches of read groups in order. Reading starts with this call, not with the first `next`.

    Args:
        manifest: locates the rows in the shards.
        read_groups: the planned batches.
        source: the files to read; the audio shards if None.
        num_cpus: logical CPUs that reading and decoding may use at the same time; they belong to the reservation of
            this process, on its node.
        num_readers: number of processes in the cluster that stream at the same time, including this one.

    Raises:
        DataError: a batch does not match the plan.
        StorageError: a shard cannot be read.
    """
    source = source or ShardSource(manifest.shards)
    chunks = _chunk_read_groups(manifest, read_groups, source, _execution_budget(num_readers))
    pool = ThreadPoolExecutor(1, "stream")

    def start_next() -> Future[StartedExecution] | None:
        """Start the next execution if there is one; its result is the number of its batches and the batches."""
        chunk = next(chunks, [])
        return pool.submit(_wait_for_first_batch, _execute(manifest, chunk, source, num_cpus), chunk) if chunk else None

    return _chain_executions(pool, start_next(), start_next)


StartedExecution = tuple[int, Iterator[AudioBatch]]


def _wait_for_first_batch(batches: Iterator[AudioBatch], read_groups: list[ReadGroup]) -> StartedExecution:
    return sum(len(group.batches) for group in read_groups), chain([next(batches)], batches)


def _chain_executions(
    pool: ThreadPoolExecutor,
    pending: Future[StartedExecution] | None,
    start_next: Callable[[], Future[StartedExecution] | None],
) -> Iterator[AudioBatch]:
    """Yield the batches of one execution after the other; each starts when half of the previous one is consumed."""
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
    """Yield the read groups of each execution: as many as fit into a budget in bytes.

    A larger read group is split into parts of at least one batch. Each part reads all row groups of the read group
    again, which costs less than spilling decoded audio from the object store.
    """
    per_sample = 2 * source.feature_dim / _SAMPLES_PER_FRAME if source.feature_dim else 2

    def batch_bytes(batch: RowIndices) -> float:
        return per_sample * int(manifest.num_samples_N[batch].sum())

    parts = chain.from_iterable(_split_read_group(group, batch_bytes, budget) for group in read_groups)
    return group_by_budget(parts, lambda part: sum(map(batch_bytes, part.batches)), budget)


def _split_read_group(
    read_group: ReadGroup, batch_bytes: Callable[[RowIndices], float], budget: float
) -> Iterator[ReadGroup]:
    """Yield the read group, or consecutive parts of it if it exceeds the budget."""
    if sum(map(batch_bytes, read_group.batches)) <= budget:
        yield read_group
        return
    for batches in group_by_budget(read_group.batches, batch_bytes, budget):
        yield replace(read_group, batches=tuple(batches))


def _execution_budget(num_readers: int) -> float:
    """Return the byte budget of one execution. Each reader has up to two: one running and one starting."""
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # untyped in Ray
    return _OBJECT_STORE_FRACTION * cluster.get("object_store_memory", 0.0) / num_readers


def build_dataset(
    manifest: Manifest, read_groups: list[ReadGroup], source: ShardSource, num_cpus: int, node: str
) -> ray.data.Dataset:
    """Build a dataset with one row per planned batch: `rows`, `lengths` and `signals` (16-bit, concatenated).

    The tasks that read reserve nothing, because their consumer has reserved CPUs for them. If they had to wait for free
    CPUs while it holds its own, two jobs could wait for each other.

    Args:
        manifest: locates the rows in the shards.
        read_groups: the planned batches.
        source: the files to read.
        num_cpus: number of tasks that read at the same time.
        node: id of the node on which they run while it is alive.
    """
    configure_data_context()
    # `from_arrow` would run a task with one CPU to inspect the tables.
    requests: ray.data.Dataset = ray.data.from_blocks([make_read_request(manifest, group) for group in read_groups])
    with warnings.catch_warnings():
        # Ray 2.60 deprecates `scheduling_strategy`, but has no other way to choose the node of some tasks only.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return requests.map_batches(
            partial(read_batches, source=source),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(max(1, min(num_cpus, len(read_groups)))),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
        )


def configure_data_context() -> ray.data.DataContext:
    """Configure and return this process's Ray Data context: outputs in the order of inputs, no progress bars."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    return context


def _execute(
    manifest: Manifest, read_groups: list[ReadGroup], source: ShardSource, num_cpus: int
) -> Iterator[AudioBatch]:
    """Run one execution of Ray Data over some read groups and yield its batches."""
    node = ray.get_runtime_context().get_node_id()
    tables = build_dataset(manifest, read_groups, source, num_cpus, node).iter_batches(
        batch_size=1, batch_format="pyarrow", prefetch_batches=2
    )
    planned = ((group, rows) for group in read_groups for rows in group.batches)
    for (group, rows), table in zip(planned, tables, strict=True):
        read_rows = table["rows"][0].as_py()
        if read_rows != rows.tolist():
            raise DataError(
                f"batch out of order in epoch {group.epoch}: expected rows {rows[:4]}.., found {read_rows[:4]}.."
            )
        yield AudioBatch(group.epoch, group.split, rows, unpack_signals(table, source))


def make_read_request(manifest: Manifest, read_group: ReadGroup) -> pa.Table:
    """Return a read group as one Arrow row: its rows with their shards and row groups, and the sizes of its batches."""
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
    """Read the row groups of a read group once and yield its batches (runs in a Ray Data task)."""
    for request in requests.to_pylist():
        locations = list(zip(request["shard"], request["row_group"], request["row"], strict=True))
        entries = _read_row_groups(source, {(shard, row_group) for shard, row_group, _ in locations})
        start = 0
        for size in request["sizes"]:
            flat = [
                source.decode(entries[shard, row_group][row].as_py())
                for shard, row_group, row in locations[start : start + size]
            ]
            yield _pack_batch(request["rows"][start : start + size], flat)
            start += size


def _read_row_groups(source: ShardSource, row_groups: set[tuple[int, int]]) -> dict[tuple[int, int], Any]:
    """Return the source's column of each (shard, row group)."""
    columns = {}
    for index in sorted({index for index, _ in row_groups}):
        groups = sorted(group for shard, group in row_groups if shard == index)
        tables = storage.read_row_groups(source.files[index], groups, [source.column])
        for group, table in zip(groups, tables, strict=True):
            columns[index, group] = table[source.column]
    return columns


def _pack_batch(rows: list[int], arrays: list[npt.NDArray[Any]]) -> pa.Table:
    return pa.table(
        {
            "rows": pa.array([rows], type=pa.list_(pa.int64())),
            "lengths": pa.array([[len(array) for array in arrays]], type=pa.list_(pa.int64())),
            "signals": pa.array([np.concatenate(arrays).tobytes()], type=pa.large_binary()),
        }
    )


def unpack_signals(table: pa.Table, source: ShardSource) -> list[Signal]:
    """Return the signals of a one-row table of `build_dataset`."""
    flat = np.frombuffer(table["signals"][0].as_buffer(), dtype=np.float16 if source.feature_dim else np.int16)
    ends = np.cumsum(table["lengths"][0].as_py())
    return [source.to_signal(part) for part in np.split(flat, ends[:-1])]
