"""What Prometheus reads at /metrics: requests, their times, seconds of audio, and which emotions were answered.

Of recordings nothing is kept but their length. A shift in the emotions answered is often the first sign that the
recordings have changed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lakd_ray.inference.results import EmotionResult

_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        given: dict[str, Any] = {"registry": self._registry, "namespace": "lakd"}
        self._requests = Counter("requests", "Requests answered", ["route", "status"], **given)
        self._seconds = Histogram(
            "request_seconds",
            "From a request's arrival to its answer's end",
            ["route"],
            buckets=_LATENCY_BUCKETS_S,
            **given,
        )
        self._audio = Counter("audio_seconds", "Seconds of audio answered", ["model"], **given)
        self._emotions = Counter("emotions", "Emotions answered", ["model", "emotion"], **given)
        self._warnings = Counter("warnings", "Warnings given with answers", ["code"], **given)
        self.requests_in_progress = Gauge("requests_running", "Requests that are being answered", **given)
        self._streams = Gauge("streams", "Streams that are open", **given)
        self.open_streams = 0

    def record_prediction(self, result: EmotionResult) -> None:
        """Count an answer."""
        self._audio.labels(result.model).inc(result.duration_s)
        self._emotions.labels(result.model, result.emotion).inc()
        for remark in result.warnings:
            self._warnings.labels(remark.code).inc()

    @contextmanager
    def track_stream(self) -> Iterator[None]:
        """Count a stream while it is open."""
        self.open_streams += 1
        self._streams.set(self.open_streams)
        try:
            yield
        finally:
            self.open_streams -= 1
            self._streams.set(self.open_streams)

    def record_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)


class MetricsMiddleware:
    """Middleware that counts requests by the route that took them, so that no stranger's path becomes a label."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._metrics.requests_in_progress.track_inprogress():
            try:
                await self._app(scope, receive, watched)
            finally:
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.record_request(route, status, time.perf_counter() - started)
