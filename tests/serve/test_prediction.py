"""`PredictionService`: limits of cost, and what honest clients notice of hostile ones, in virtual time.

The simulated model processes 100 seconds of audio a second, one call at a time, and decoding takes as long as the name
of a recording states. The waits are those of the real queues.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest
from pydantic import ValidationError
from support import virtual_time
from support.fake_model import FakeModel

from lakd_ray.audio import SAMPLE_RATE, Recording, Wave
from lakd_ray.config import ServeConfig
from lakd_ray.inference.options import PredictOptions
from lakd_ray.inference.results import EmotionResult, ModelPredictions
from lakd_ray.serve import scheduling
from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.prediction import PredictionService, Upload
from lakd_ray.serve.scheduling import Caller

SPEED = 100.0  # seconds of audio a second
PLAIN = PredictOptions()
DENSE_TIMELINE = PredictOptions(window_s=5.0, hop_s=0.1)  # 775 s of audio for a recording of 20 s


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch):
    monkeypatch.setattr(scheduling, "monotonic", virtual_time.now)


class SimulatedDecoder:
    """Decodes `SECONDS DECODING_SECONDS` to silence."""

    def __init__(self) -> None:
        self.started = 0

    async def decode(self, content: bytes, max_seconds: float) -> Recording:
        seconds, decoding_s = map(float, content.split())
        self.started += 1
        await asyncio.sleep(decoding_s)
        if seconds > max_seconds:
            raise RequestError(413, "too long")
        return Recording(np.broadcast_to(np.float32(0.1), round(seconds * SAMPLE_RATE)), False, 0.0)


class SimulatedModel(FakeModel):
    """A model of a limited speed."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = asyncio.Lock()
        self.seconds = 0.0

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        async with self._lock:
            seconds = sum(map(len, waves)) / SAMPLE_RATE
            await asyncio.sleep(seconds / SPEED)
            self.seconds += seconds
        return await super().predict(waves, language)


class Endpoint:
    """A service with a simulated decoder and model, and the clients that use it."""

    def __init__(self, **settings: float) -> None:
        self.config = ServeConfig(**settings)
        self.decoder, self.model = SimulatedDecoder(), SimulatedModel()
        self.service = PredictionService(self.config, self.decoder)  # type: ignore[arg-type]  # a fake
        self.statuses: Counter[int] = Counter()

    async def predict(
        self, client: str, seconds: float, options: PredictOptions = PLAIN, *, decoding_s: float = 0.02
    ) -> tuple[float, EmotionResult | RequestError]:
        """Return the latency and the outcome of one request."""
        start = virtual_time.now()
        upload = Upload(f"{seconds} {decoding_s}".encode(), self.model)
        outcome: EmotionResult | RequestError
        try:
            outcome = await self.service.predict(Caller(client), upload, options)
        except RequestError as error:
            outcome = error
        self.statuses[outcome.status if isinstance(outcome, RequestError) else 200] += 1
        return virtual_time.now() - start, outcome

    async def measure_honest_client(self, client: str = "honest", seconds: float = 30.0) -> list[float]:
        """Return the sorted latencies of a client that sends a clip of one second every half second."""
        latencies = []
        end = virtual_time.now() + seconds
        while virtual_time.now() < end:
            latency_s, outcome = await self.predict(client, 1.0)
            assert not isinstance(outcome, RequestError), outcome.message
            latencies.append(latency_s)
            await asyncio.sleep(0.5)
        return sorted(latencies)


def p99(latencies: list[float]) -> float:
    return latencies[int(0.99 * len(latencies))]


async def forever(request: Callable[[], Awaitable[object]]) -> None:
    while True:
        await request()
        await asyncio.sleep(0.01)


async def under_attack(endpoint: Endpoint, attack: Callable[[], Awaitable[object]], client: str) -> list[float]:
    """Return the latencies of an honest client while 16 others repeat a request without a pause."""
    attackers = [asyncio.create_task(forever(attack)) for _ in range(16)]
    await asyncio.sleep(5)
    try:
        return await endpoint.measure_honest_client(client)
    finally:
        for attacker in attackers:
            attacker.cancel()
        await asyncio.gather(*attackers, return_exceptions=True)


def test_request_that_costs_too_much_is_rejected_before_the_model():
    async def scenario() -> None:
        endpoint = Endpoint()
        _, outcome = await endpoint.predict("a", 119.0, PredictOptions(window_s=60.0, hop_s=59 / 499))
        assert isinstance(outcome, RequestError) and outcome.status == 422
        assert "overlap" in outcome.message and "1200 s" in outcome.message and "hop_s" in outcome.message
        uploads = [Upload(b"110 0.02", endpoint.model)] * 12
        with pytest.raises(RequestError, match="limit of 1200 s in all") as rejected:
            await endpoint.service.predict_batch(Caller("a"), uploads, PLAIN)
        assert rejected.value.status == 413
        with pytest.raises(RequestError, match="overlap"):
            await endpoint.service.predict_batch(Caller("a"), [Upload(b"20 0.02", endpoint.model)] * 2, DENSE_TIMELINE)
        assert endpoint.model.seconds == 0

    virtual_time.run(scenario())


def test_limits_that_contradict_each_other_are_rejected():
    with pytest.raises(ValidationError, match=r"serve\.max_seconds is 1800 s.*raise serve\.max_request_audio_s"):
        ServeConfig(max_seconds=1800.0)
    with pytest.raises(ValidationError, match=r"raise serve\.max_client_audio_s"):
        ServeConfig(max_request_audio_s=5000.0)


def test_batch_has_the_results_of_all_calls_in_order():
    async def scenario() -> None:
        endpoint = Endpoint()
        contents = [b"25 0.3", b"500 0.1", b"1 0.1", b"12 0.2"]
        outcomes = await endpoint.service.predict_batch(
            Caller("a"), [Upload(content, endpoint.model) for content in contents], PredictOptions(window_s=4.0)
        )
        results = [outcome for outcome in outcomes if isinstance(outcome, EmotionResult)]
        assert [result.duration_s for result in results] == [25.0, 1.0, 12.0]
        assert [len(result.segments or ()) for result in results] == [7, 1, 3]
        assert isinstance(outcomes[1], RequestError) and outcomes[1].status == 413

    virtual_time.run(scenario())


@pytest.mark.parametrize("client", ["honest", "hostile"])
def test_expensive_timelines_do_not_delay_others(client):
    """Neither other clients nor, from the same address, other requests."""

    async def scenario() -> tuple[list[float], list[float]]:
        endpoint = Endpoint()
        calm = await endpoint.measure_honest_client()
        return calm, await under_attack(endpoint, lambda: endpoint.predict("hostile", 20.0, DENSE_TIMELINE), client)

    calm, attacked = virtual_time.run(scenario())
    print(f"calm p99 {p99(calm):.2f} s, attacked p99 {p99(attacked):.2f} s")
    assert p99(calm) < 0.04
    assert p99(attacked) < 1.0  # decoding, two calls of 10 s of audio in progress, and one turn of the others


@pytest.mark.parametrize("client", ["honest", "hostile"])
def test_aborted_requests_do_not_delay_others(client):
    """Each takes half a second to decode, on two processes, and is aborted after 50 ms."""

    async def scenario() -> tuple[list[float], int]:
        endpoint = Endpoint()

        async def abort() -> None:
            try:
                async with asyncio.timeout(0.05):
                    await endpoint.predict("hostile", 119.0, decoding_s=0.5)
            except TimeoutError:
                pass

        latencies = await under_attack(endpoint, abort, client)
        return latencies, endpoint.decoder.started

    latencies, started = virtual_time.run(scenario())
    print(f"p99 {p99(latencies):.2f} s, {started} recordings decoded")
    assert p99(latencies) < 1.1
    assert started < 35 * 2 / 0.5 + 100, "aborted recordings that waited were decoded"


def test_overload_is_rejected_early_and_accepted_requests_are_served_within_the_limit():
    async def scenario() -> tuple[Endpoint, list[float], list[int | None]]:
        endpoint = Endpoint(max_wait_s=4.0)
        accepted, retry_after = [], []

        async def request(number: int) -> None:
            latency_s, outcome = await endpoint.predict(f"client {number % 50}", 10.0)
            if isinstance(outcome, RequestError):
                assert latency_s < 0.5, "rejections are immediate"
                retry_after.append(outcome.retry_after_s)
            else:
                accepted.append(latency_s)

        tasks = []
        for number in range(60 * 40):  # the model manages 10 requests a second
            tasks.append(asyncio.create_task(request(number)))
            await asyncio.sleep(1 / 40)
        await asyncio.gather(*tasks)
        return endpoint, sorted(accepted), retry_after

    endpoint, accepted, retry_after = virtual_time.run(scenario())
    print(f"{endpoint.statuses}, accepted p50 {accepted[len(accepted) // 2]:.1f} s, p99 {p99(accepted):.1f} s")
    assert set(endpoint.statuses) == {200, 503}
    assert endpoint.statuses[200] > 0.9 * 60 * 10, "the model was idle"
    assert p99(accepted) < 6
    assert all(seconds is not None and 1 <= seconds <= 30 for seconds in retry_after)
