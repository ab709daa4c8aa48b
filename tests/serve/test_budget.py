"""The budget of bytes that uploads share."""

import asyncio

import pytest

from lakd_ray.serve.budget import MEMORY_OF_BYTE, SMALL_BYTES, ByteBudget
from lakd_ray.serve.errors import RequestError

BIG = 2 * SMALL_BYTES


async def wait_in(budget: ByteBudget, size: int, entered: list[int], leave: asyncio.Event) -> None:
    async with budget.reserve(size):
        entered.append(size)
        await leave.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_uploads_wait_for_room_in_the_order_of_their_arrival():
    async def scenario() -> None:
        budget, entered, leave = ByteBudget(2 * MEMORY_OF_BYTE * BIG), [], [asyncio.Event() for _ in range(5)]
        sizes = (BIG, BIG + 1, BIG - 1, 100 * BIG, SMALL_BYTES)
        tasks = [asyncio.create_task(wait_in(budget, size, entered, go)) for size, go in zip(sizes, leave, strict=True)]
        await settle()
        assert entered == [BIG, SMALL_BYTES]  # small ones do not wait
        leave[0].set()
        await settle()
        assert entered == [BIG, SMALL_BYTES, BIG + 1, BIG - 1]
        leave[1].set()
        await settle()
        assert 100 * BIG not in entered
        leave[2].set()
        await settle()
        assert entered[-1] == 100 * BIG  # alone
        for event in leave:
            event.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_no_room_in_time_is_rejected_and_leaves_the_queue():
    async def scenario() -> None:
        budget, entered, leave = ByteBudget(MEMORY_OF_BYTE * BIG, max_wait_s=0.05), [], asyncio.Event()
        first = asyncio.create_task(wait_in(budget, BIG, entered, leave))
        canceled = asyncio.create_task(wait_in(budget, BIG, entered, leave))
        await settle()
        canceled.cancel()
        with pytest.raises(RequestError, match="memory") as rejected:
            await wait_in(budget, BIG, entered, leave)
        assert rejected.value.status == 503
        leave.set()
        await first
        await wait_in(budget, BIG, entered, leave)
        assert entered == [BIG, BIG]

    asyncio.run(scenario())


def test_an_error_returns_the_bytes():
    async def scenario() -> None:
        budget = ByteBudget(MEMORY_OF_BYTE * BIG, max_wait_s=0.05)
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                async with budget.reserve(BIG):
                    raise ValueError("broken")

    asyncio.run(scenario())


def test_request_that_is_canceled_in_the_moment_of_its_admission_returns_its_memory():
    async def scenario() -> None:
        budget, entered, leave = ByteBudget(MEMORY_OF_BYTE * BIG), [], [asyncio.Event() for _ in range(2)]
        first = asyncio.create_task(wait_in(budget, BIG, entered, leave[0]))
        await settle()
        second = asyncio.create_task(wait_in(budget, BIG, entered, leave[1]))
        await settle()
        first.cancel()
        await asyncio.sleep(0)  # the memory of the first is the second's now, which has not run since
        second.cancel()
        await settle()
        leave[1].set()
        await asyncio.wait_for(wait_in(budget, BIG, entered, leave[1]), 5)

    asyncio.run(scenario())
