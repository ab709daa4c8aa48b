"""`FairQueue`: the order of turns, limits, and calls of requests that were canceled."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.scheduling import Call, Caller, FairQueue


class Workshop:
    """Calls that finish when the test permits it, in the order in which the queue starts them."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.finished: list[str] = []
        self._permits = asyncio.Semaphore(0)

    def calls(self, name: str, *costs: float | None) -> list[Call[str]]:
        return [Call(self._function(f"{name}{number}"), cost) for number, cost in enumerate(costs)]

    def finish(self, count: int = 1) -> None:
        for _ in range(count):
            self._permits.release()

    def _function(self, name: str) -> Callable[[], Awaitable[str]]:
        async def work() -> str:
            self.started.append(name)
            await self._permits.acquire()
            self.finished.append(name)
            return name

        return work


def queue(**options: Any) -> FairQueue:
    return FairQueue(**{"workers": 1, "max_wait_s": 60.0} | options)


def start(queue: FairQueue, client: str, calls: Sequence[Call[str]]) -> "asyncio.Task[list[str]]":
    return asyncio.create_task(queue.run(Caller(client), calls))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def reject(queue: FairQueue, client: str, *costs: float) -> RequestError:
    with pytest.raises(RequestError) as rejected:
        await queue.run(Caller(client), Workshop().calls("rejected", *costs))
    return rejected.value


def test_clients_take_turns_whatever_they_have_in_the_queue():
    async def scenario() -> list[str]:
        line, shop = queue(), Workshop()
        tasks = [start(line, "a", shop.calls(f"a{n}-", 1.0)) for n in range(6)]
        await settle()
        tasks += [start(line, "b", shop.calls("b", 0.9)), start(line, "c", shop.calls("c", 3.9))]
        await settle()
        shop.finish(8)
        await asyncio.gather(*tasks)
        return shop.started

    # b waits for one call of a and no more; c has its turn after the same cost of a as its own
    assert asyncio.run(scenario()) == ["a0-0", "b0", "a1-0", "a2-0", "a3-0", "c0", "a4-0", "a5-0"]


def test_long_request_does_not_delay_the_short_ones_of_its_client():
    async def scenario() -> list[str]:
        line, shop = queue(), Workshop()
        tasks = [start(line, "a", shop.calls("long", *[10.0] * 4))]
        await settle()
        tasks += [start(line, "a", shop.calls(f"short{n}-", 1.0)) for n in range(3)]
        await settle()
        shop.finish(7)
        assert (await tasks[0]) == ["long0", "long1", "long2", "long3"]
        await asyncio.gather(*tasks)
        return shop.started

    assert asyncio.run(scenario()) == ["long0", "short0-0", "short1-0", "short2-0", "long1", "long2", "long3"]


def test_canceled_request_is_dropped_but_a_running_call_finishes_before_the_next_one():
    async def scenario() -> None:
        line, shop = queue(), Workshop()
        aborted = start(line, "a", shop.calls("a", 1.0, 1.0, 1.0))
        waiting = start(line, "b", shop.calls("b", 1.0))
        await settle()
        aborted.cancel()
        await settle()
        assert (shop.started, aborted.cancelled()) == (["a0"], True)
        shop.finish(2)
        assert await waiting == ["b0"]
        assert shop.finished == ["a0", "b0"]
        shop.finish()
        assert await line.run(Caller("a"), shop.calls("again", 1.0)) == ["again0"]

    asyncio.run(scenario())


def test_deadline_drops_what_waits():
    async def scenario() -> None:
        line, shop = queue(), Workshop()
        running = start(line, "a", shop.calls("a", 1.0))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(line.run(Caller("b"), shop.calls("b", 1.0)), 0.05)
        shop.finish(2)
        await running
        await settle()
        assert shop.started == ["a0"]

    asyncio.run(scenario())


def test_error_ends_its_request_only():
    async def fail() -> str:
        raise RequestError(422, "no")

    async def scenario() -> None:
        line, shop = queue(), Workshop()
        failing = start(line, "a", [Call(fail, 1.0), *shop.calls("a", 1.0)])
        other = start(line, "b", shop.calls("b", 1.0))
        shop.finish()
        with pytest.raises(RequestError, match="no"):
            await failing
        assert await other == ["b0"]
        assert shop.started == ["b0"]

    asyncio.run(scenario())


def test_calls_share_a_worker_up_to_its_cost_and_an_expensive_one_occupies_one_worker():
    async def scenario() -> None:
        shop, line = Workshop(), queue(workers=2, worker_cost=10.0)
        tasks = [start(line, "a", shop.calls("large", 120.0)), start(line, "b", shop.calls("b", *[2.0] * 7))]
        await settle()
        assert len(shop.started) == 1 + 5
        shop.finish(8)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_client_with_too_much_in_the_queue_is_rejected_but_not_its_short_requests():
    async def scenario() -> None:
        line, shop = queue(max_client_cost=100.0), Workshop()
        tasks = [start(line, "a", shop.calls("a", 60.0))]
        await settle()
        error = await reject(line, "a", 60.0)
        assert (error.status, error.retry_after_s) == (429, 1)
        assert "60 s of audio of this client" in error.message and "at most 100 s" in error.message
        tasks += [start(line, "a", shop.calls("short", 1.0)), start(line, "b", shop.calls("b", 60.0))]
        await settle()
        shop.finish(3)
        await asyncio.gather(*tasks)
        shop.finish()
        await line.run(Caller("a"), shop.calls("alone", 200.0))  # a limit of one request is not the queue's concern

    asyncio.run(scenario())


def test_total_cost_is_limited_and_clients_below_their_share_are_not_affected():
    async def scenario() -> None:
        line, shop = queue(max_cost=100.0), Workshop()
        tasks = [start(line, client, shop.calls(client, 40.0)) for client in "ab"]
        await settle()
        assert (await reject(line, "a", 40.0)).status == 503
        tasks.append(start(line, "c", shop.calls("c", 30.0)))
        await settle()
        shop.finish(3)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


async def measure_speed(line: FairQueue, shop: Workshop, seconds: float) -> None:
    """Let a call of one second of audio take this many seconds, while others wait."""
    measured = start(line, "first", shop.calls("measured", 1.0, 1.0))
    await asyncio.sleep(seconds)
    shop.finish()
    await settle()
    shop.finish()
    await measured


def test_request_that_would_wait_too_long_is_rejected_before_it_starts():
    async def scenario() -> None:
        line, shop = queue(max_wait_s=1.5), Workshop()
        await measure_speed(line, shop, 0.1)
        assert line.expected_wait("a", 5.0) == 0
        tasks = [start(line, "a", shop.calls("a", *[1.0] * 40))]
        await settle()
        assert 0 < 3 * line.expected_wait("b", 10.0) < line.expected_wait("b", 40.0)
        assert line.expected_wait("b", 100.0) == pytest.approx(line.expected_wait("b", 40.0), rel=0.1)
        tasks.append(start(line, "b", shop.calls("b", 1.0)))
        await settle()
        error = await reject(line, "c", 100.0, 100.0)
        assert error.status == 503 and "longer than the limit of 1.5 s" in error.message
        assert error.retry_after_s is not None and error.retry_after_s >= 1
        shop.finish(41)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_speed_counts_only_while_all_workers_are_occupied():
    async def scenario() -> None:
        line, shop = queue(worker_cost=10.0), Workshop()
        for _ in range(3):  # single short calls are slow for their cost, but the worker has room for nine others
            task = start(line, "a", shop.calls("a", 1.0))
            await asyncio.sleep(0.06)
            shop.finish()
            await task
        tasks = [start(line, "a", shop.calls("a", *[10.0] * 20))]
        await settle()
        assert line.expected_wait("b", 100.0) == 0
        shop.finish(20)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_calls_of_unknown_cost_are_charged_by_their_time():
    async def scenario() -> list[str]:
        line = queue()
        started: list[str] = []

        def call(name: str, seconds: float) -> Call[str]:
            async def work() -> str:
                started.append(name)
                await asyncio.sleep(seconds)
                return name

            return Call(work)

        slow = start(line, "slow", [call("slow", 0.5), call("slow", 0.0)])
        await settle()
        await asyncio.gather(slow, start(line, "quick", [call("quick", 0.0)] * 4))
        return started

    assert asyncio.run(scenario()) == ["slow", *["quick"] * 4, "slow"]
