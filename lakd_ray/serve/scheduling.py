"""Share the model and the decoders between clients: fair turns, bounded waits, and no work for clients that left.

A `FairQueue` starts calls as soon as the resource has room. Calls that wait are ordered by self-clocked fair queueing
(Golestani, 1994) on two levels: first between clients, then between the requests of a client. A client with a long
queue therefore delays only itself, and a long request does not delay the short ones of the same client.

A request that would wait longer than the limit is rejected before any of its work starts. The wait is estimated from
the costs ahead of it and from the measured speed. A call whose request was canceled (its client disconnected, or its
deadline passed) is dropped if it waits. If it runs, it finishes: its cost is bounded, and the resource is not free
before.
"""

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Generic, TypeVar

from lakd_ray.serve.errors import RequestError

T = TypeVar("T")

_SPEED_WINDOW_S = 20.0  # time constant of the measured speed
_MIN_BUSY_S = 0.05  # busy time from which a speed is known
_FIRST_ESTIMATE = 0.1  # cost of a call of unknown cost, before any has finished
_ESTIMATE_WEIGHT = 0.1  # weight of a finished call in this estimate
_MAX_RETRY_AFTER_S = 30
_MIN_WAIT_S = 1.0  # a wait that is accepted at any time: earlier stages have worked for the request already
_ROUNDING = 1e-6  # of sums of fractions of a worker


def _now() -> float:
    return monotonic()


@dataclass(frozen=True)
class Caller:
    """The origin of a request: its client, and when its processing began (`time.monotonic`)."""

    client: str
    since: float = field(default_factory=_now)


@dataclass(frozen=True)
class Call(Generic[T]):
    """A unit of work of a request.

    Attributes:
        function: starts the work.
        cost: cost in the unit of the queue, such as seconds of audio; None if only its run time will show it. A queue
            has either calls of known cost or calls of unknown cost.
    """

    function: Callable[[], Awaitable[T]]
    cost: float | None = None


class FairQueue:
    """Runs the calls of requests, in fair turns between clients.

    Args:
        workers: number of parallel workers of the resource.
        worker_cost: total cost of the calls that occupy one worker. A more expensive call occupies one; each call does
            if it is 0.
        max_wait_s: a request is rejected if it would wait longer, in seconds since its processing began.
        max_client_cost: limit of the cost that one client may have in the queue, not counting that part of its other
            requests that would run after the new one.
        max_cost: limit of the cost of all clients, whatever the speed; it bounds the memory of the queue. A client that
            has less than its share of it is not affected.
    """

    def __init__(
        self,
        *,
        workers: int,
        worker_cost: float = 0.0,
        max_wait_s: float,
        max_client_cost: float = math.inf,
        max_cost: float = math.inf,
    ):
        self._workers, self._worker_cost = workers, worker_cost
        self._max_wait_s, self._max_client_cost, self._max_cost = max_wait_s, max_client_cost, max_cost
        self._clients: dict[str, _Client] = {}
        self._clock = 0.0  # virtual time: the turn of the call that started last
        self._occupied = 0.0  # number of workers
        self._running: set[asyncio.Task[None]] = set()
        self._context = contextvars.copy_context()  # Serve cancels calls in the context of a request along with it
        self._speed = _SpeedMeter()
        self._estimate = _FIRST_ESTIMATE

    async def run(self, caller: Caller, calls: Sequence[Call[T]]) -> list[T]:
        """Run the calls of one request and return their results in order.

        If one raises, those that wait are dropped.

        Raises:
            RequestError: 429 the client has too much in the queue, 503 the request would wait too long; nothing ran.
        """
        costs = [self._estimate if call.cost is None else call.cost for call in calls]
        self._check_wait(caller, sum(costs))
        client = self._clients.setdefault(caller.client, _Client(turn=self._clock))
        if not client.is_waiting:
            client.turn = max(client.turn, self._clock)
        request = _Request(client, turn=client.clock, cost=sum(costs), unfinished=len(calls))
        loop = asyncio.get_running_loop()
        results: list[asyncio.Future[T]] = [loop.create_future() for _ in calls]
        request.waiting.extend(
            _QueuedCall(call, cost, request, result) for call, cost, result in zip(calls, costs, results, strict=True)
        )
        client.requests.append(request)
        try:
            self._start_calls()
            return list(await asyncio.gather(*results))
        finally:
            self._drop_waiting(request)

    def expected_wait(self, client: str, cost: float) -> float:
        """Return the seconds that a request would wait, from the costs that would run before it; 0 if unknown."""
        own = self._cost_ahead(client, cost)
        others = (min(other.cost, own + cost) for name, other in self._clients.items() if name != client)
        return (own + sum(others)) / self._speed.value

    def _cost_ahead(self, client: str, cost: float) -> float:
        """Return the cost of the client's own requests that would run before a new one: they take turns with it."""
        requests = self._clients[client].requests if client in self._clients else []
        return sum(min(request.cost, cost) for request in requests)

    def _check_wait(self, caller: Caller, cost: float) -> None:
        own = self._cost_ahead(caller.client, cost)
        if own and own + cost > self._max_client_cost:
            raise RequestError(
                429,
                f"{own:.0f} s of audio of this client are in progress, and the request has {cost:.0f} s, expected at "
                f"most {self._max_client_cost:g} s in all: wait for the responses, then send the request again",
                retry_after_s=_retry_after(own / self._speed.value),
            )
        total = sum(client.cost for client in self._clients.values())
        client_cost = self._clients[caller.client].cost if caller.client in self._clients else 0.0
        share = self._max_cost / len({*self._clients, caller.client})
        if total and total + cost > self._max_cost and client_cost + cost > share:
            raise RequestError(
                503,
                f"the endpoint is busy with {total:.0f} s of audio, expected at most {self._max_cost:g} s: send the "
                "request again later",
                retry_after_s=_retry_after((total + cost - self._max_cost) / self._speed.value),
            )
        remaining_s = max(_MIN_WAIT_S, self._max_wait_s - (monotonic() - caller.since))
        excess = self.expected_wait(caller.client, cost) - remaining_s
        if excess > 0:
            raise RequestError(
                503,
                f"the endpoint is busy: the request would wait longer than the limit of {self._max_wait_s:g} s; send "
                "it again later",
                retry_after_s=_retry_after(excess),
            )

    def _start_calls(self) -> None:
        """Start calls in the order of their turns while a worker has room."""
        while self._occupied < self._workers - _ROUNDING and (call := self._take_next()) is not None:
            self._occupied += self._occupation(call.cost)
            task = asyncio.create_task(self._run_call(call), context=self._context.copy())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        self._speed.measure(is_busy=self._occupied >= self._workers - _ROUNDING)

    def _take_next(self) -> "_QueuedCall | None":
        waiting = [client.next_request for client in self._clients.values() if client.is_waiting]
        if not waiting:
            return None
        request = min(waiting, key=lambda request: request.client.turn + request.waiting[0].cost)
        call = request.waiting.popleft()
        request.turn += call.cost
        request.client.clock = request.turn
        request.client.turn += call.cost
        self._clock = request.client.turn
        return call

    def _occupation(self, cost: float) -> float:
        return min(1.0, cost / self._worker_cost) if self._worker_cost else 1.0

    async def _run_call(self, call: "_QueuedCall") -> None:
        start = monotonic()
        try:
            result = await call.call.function()
            if not call.result.done():
                call.result.set_result(result)
        except Exception as error:  # noqa: BLE001 -- raised by `run`, in the task of the request
            if not call.result.done():
                call.result.set_exception(error)
            self._drop_waiting(call.request)
        finally:
            call.result.cancel()  # no effect unless the call was canceled
            self._finish_call(call, monotonic() - start)
            self._start_calls()

    def _finish_call(self, call: "_QueuedCall", seconds: float) -> None:
        cost = call.cost
        if call.call.cost is None:  # the turns so far used the estimate
            cost = seconds
            call.request.turn += seconds - call.cost
            call.request.client.turn += seconds - call.cost
            self._estimate += _ESTIMATE_WEIGHT * (seconds - self._estimate)
        self._speed.add(cost)
        self._occupied -= self._occupation(call.cost)
        self._remove(call.request, 1, call.cost)

    def _drop_waiting(self, request: "_Request") -> None:
        dropped = [*request.waiting]
        request.waiting.clear()
        for call in dropped:
            call.result.cancel()
        self._remove(request, len(dropped), sum(call.cost for call in dropped))

    def _remove(self, request: "_Request", calls: int, cost: float) -> None:
        client = request.client
        request.cost -= cost
        request.unfinished -= calls
        if not request.unfinished and request in client.requests:
            client.requests.remove(request)
        if not client.requests:
            self._clients = {name: other for name, other in self._clients.items() if other is not client}


class _SpeedMeter:
    """Cost of the calls that finish per second while all workers are occupied, over the last half minute or so.

    Other times do not count: with few calls, the speed would be their rate and not that of the workers.
    """

    def __init__(self) -> None:
        self._cost = self._busy_s = 0.0
        self._last, self._is_busy = monotonic(), False

    @property
    def value(self) -> float:
        """Cost per second; infinite if no speed is known."""
        self.measure(is_busy=self._is_busy)
        return self._cost / self._busy_s if self._cost and self._busy_s > _MIN_BUSY_S else math.inf

    def measure(self, *, is_busy: bool) -> None:
        """Count the time since the last measurement, and store whether all workers are occupied from now on."""
        now = monotonic()
        elapsed_s, self._last = now - self._last, now
        decay = math.exp(-elapsed_s / _SPEED_WINDOW_S)
        self._cost *= decay
        self._busy_s = self._busy_s * decay + (elapsed_s if self._is_busy else 0.0)
        self._is_busy = is_busy

    def add(self, cost: float) -> None:
        """Count a finished call."""
        if self._is_busy:
            self.measure(is_busy=True)
            self._cost += cost


@dataclass(eq=False)
class _Client:
    turn: float
    """Virtual time of the end of its last started call."""
    clock: float = 0.0
    """Virtual time between its requests."""
    requests: list["_Request"] = field(default_factory=list)
    """Requests that are not finished."""

    @property
    def cost(self) -> float:
        return sum(request.cost for request in self.requests)

    @property
    def is_waiting(self) -> bool:
        return any(request.waiting for request in self.requests)

    @property
    def next_request(self) -> "_Request":
        waiting = [request for request in self.requests if request.waiting]
        return min(waiting, key=lambda request: request.turn + request.waiting[0].cost)


@dataclass(eq=False)
class _Request:
    client: _Client
    turn: float
    """Virtual time of the end of its last started call."""
    cost: float
    """Cost of the calls that wait or run."""
    unfinished: int
    """Number of these calls."""
    waiting: "deque[_QueuedCall]" = field(default_factory=deque)


@dataclass(eq=False)
class _QueuedCall:
    call: Call[Any]
    cost: float
    """The cost, or its estimate."""
    request: _Request
    result: "asyncio.Future[Any]"


def _retry_after(seconds: float) -> int:
    """Return a number of seconds for the header Retry-After."""
    return max(1, min(_MAX_RETRY_AFTER_S, math.ceil(seconds)))
