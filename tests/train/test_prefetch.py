"""Batches are prepared in a thread in order, with errors in their place, and the thread ends."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from lakd_ray.train.prefetch import Prefetcher, load_batches
from lakd_ray.train.step import TrainBatch

CPU = torch.device("cpu")


def make_batch(number: int) -> TrainBatch:
    return TrainBatch(torch.full((2, 3, 4), float(number)), torch.tensor([3, 2]), torch.tensor([0, 1]), ["en", "fi"])


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_items_come_in_order_and_at_most_two_ahead():
    started: list[int] = []

    def convert(number: int) -> int:
        started.append(number)
        return 2 * number

    prefetcher = Prefetcher(iter(range(9)), convert)
    wait_until(lambda: len(started) == 3)  # two in the queue and one that waits for a slot
    time.sleep(0.3)
    assert started == [0, 1, 2]
    assert next(prefetcher) == 0
    wait_until(lambda: len(started) == 4)
    assert list(prefetcher) == [2, 4, 6, 8, 10, 12, 14, 16] and list(prefetcher) == []
    prefetcher.close()
    wait_until(lambda: not prefetch_threads())


@pytest.mark.parametrize("where", ["source", "convert"])
def test_an_error_is_raised_in_the_place_of_its_item(where: str):
    def source() -> Iterator[int]:
        yield from (0, 1)
        if where == "source":
            raise ValueError("row 2 is damaged")
        yield 2

    def convert(number: int) -> int:
        if number == 2:
            raise ValueError("row 2 is damaged")
        return number

    prefetcher = Prefetcher(source(), convert)
    assert [next(prefetcher), next(prefetcher)] == [0, 1]
    for _ in range(2):
        with pytest.raises(ValueError, match="row 2 is damaged"):
            next(prefetcher)
    prefetcher.close()
    assert prefetch_threads() == []


def test_closing_ends_the_thread_and_the_source():
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(threading.current_thread().name)

    prefetcher = Prefetcher(source(), lambda number: number)
    assert next(prefetcher) == 0
    prefetcher.close()
    assert closed == ["prefetch"] and prefetch_threads() == [] and list(prefetcher) == []


def test_batches_on_a_cpu_are_made_when_they_are_needed():
    made: list[int] = []
    closed = []

    def source() -> Iterator[int]:
        try:
            for number in range(5):
                made.append(number)
                yield number
        finally:
            closed.append(True)

    batches = load_batches(source(), make_batch, CPU, torch.bfloat16)
    number, batch = next(batches)
    assert (number, made, prefetch_threads()) == (0, [0], [])
    assert batch.inputs.dtype == torch.bfloat16 and torch.equal(batch.labels_B, torch.tensor([0, 1]))
    batches.close()
    assert closed == [True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_reach_the_gpu_in_order_without_waiting():
    device = torch.device("cuda", torch.cuda.current_device())
    batches = load_batches(iter(range(20)), make_batch, device, torch.bfloat16)
    sums = []
    for number, batch in batches:
        assert batch.inputs.device == batch.lengths_B.device == device and batch.inputs.dtype == torch.bfloat16
        sums.append((number, batch.inputs.float().mean()))
    assert [(number, float(mean)) for number, mean in sums] == [(number, float(number)) for number in range(20)]
    assert prefetch_threads() == []
