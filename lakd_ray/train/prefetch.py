"""Collate batches and copy them to the device, for a GPU in a thread beside the step."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Generic, Self, TypeVar

import torch

from lakd_ray.train.step import TrainBatch

_DEPTH = 2
_JOIN_SECONDS = 30.0  # until the batch in progress is read

Raw = TypeVar("Raw")
Item = TypeVar("Item")


def load_batches(
    source: Iterator[Raw], collate: Callable[[Raw], TrainBatch], device: torch.device, dtype: torch.dtype
) -> Generator[tuple[Raw, TrainBatch]]:
    """Yield each batch of a source with its tensors on the device, in the order of the source.

    For a GPU a thread collates, pins and copies ahead of the step. On a CPU a thread would take its time from the
    step, so a batch is made when it is needed.

    Args:
        source: yields the batches; it is closed at the end.
        collate: makes the tensors of a batch, on the CPU.
        device: the device of the step.
        dtype: precision of cached features.
    """
    if device.type != "cuda":
        with _closing_source(source):
            for raw in source:
                yield raw, collate(raw).cast(dtype)
        return
    copier = _GpuCopier(device)

    def prepare(raw: Raw) -> tuple[Raw, TrainBatch, torch.cuda.Event]:
        return raw, *copier.start(collate(raw).cast(dtype))

    with closing(Prefetcher(source, prepare)) as prefetched:
        for raw, batch, copied in prefetched:
            yield raw, copier.finish(batch, copied)


class _GpuCopier:
    """Copies batches from pinned memory to a GPU on a stream of its own.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch

    def start(self, batch: TrainBatch) -> tuple[TrainBatch, torch.cuda.Event]:
        """Start to copy a batch; return the copy and the event of its completion."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            copy = batch.pin_memory().to(self._device, batch.inputs.dtype)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped in torch
            copied.record(self._stream)
        return copy, copied

    def finish(self, batch: TrainBatch, copied: torch.cuda.Event) -> TrainBatch:
        """Let the current stream, not the host, wait for the copy."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        for tensor in batch.tensors:
            tensor.record_stream(current)  # its memory is not reused before the step has read it
        return batch


class Prefetcher(Generic[Raw, Item]):
    """Iterates over a source in a thread, at most two items ahead. Close it when the items are no longer needed.

    Items come in the order of the source. An error of the source or the conversion is raised in place of its item.

    Args:
        source: an iterator, which the thread closes at the end if it is a generator.
        convert: applied to each item, in the thread.
    """

    def __init__(self, source: Iterator[Raw], convert: Callable[[Raw], Item]) -> None:
        self._source, self._convert = source, convert
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(_DEPTH)
        self._end: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        if self._end is None:
            item, self._end = self._queue.get()
            if self._end is None:
                return item  # type: ignore[return-value]  # without an error there is an item
        raise self._end

    def close(self) -> None:
        """Stop the thread after the item in progress, and drop the items that were not used."""
        self._closed.set()
        self._end = self._end or StopIteration()
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        try:
            with _closing_source(self._source):
                for raw in self._source:
                    if not self._put(self._convert(raw), None):
                        return
            self._put(None, StopIteration())
        except BaseException as error:  # noqa: BLE001 -- raised by `__next__`
            self._put(None, error)

    def _put(self, item: Item | None, end: BaseException | None) -> bool:
        """Wait for a free slot; return false if the prefetcher was closed."""
        while not self._closed.is_set():
            try:
                self._queue.put((item, end), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


@contextmanager
def _closing_source(source: Iterator[object]) -> Generator[None]:
    """Close the source after the block if it is a generator, which may hold threads and files."""
    try:
        yield
    finally:
        if isinstance(source, Generator):
            source.close()
