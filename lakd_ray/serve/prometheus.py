"""Metrics for Prometheus at /metrics: requests, latency, seconds of audio, and predicted emotions.

Recordings are not stored; only their length is counted. A shift in the predicted emotions is often the first sign that
the recordings have changed.
"""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lakd_ray.inference.results import EmotionResult

_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters, gauges and histograms of one application, in its own registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self._registry, "namespace": "lakd"}
        self._requests = Counter("requests", "HTTP requests with a response", ["route", "status"], **common)
        self._seconds = Histogram(
            "request_seconds",
            "Seconds from the arrival of a request to the end of its response",
            ["route"],
            buckets=_LATENCY_BUCKETS_S,
            **common,
        )
        self._audio = Counter("audio_seconds", "Seconds of audio with a prediction", ["model"], **common)
        self._emotions = Counter("emotions", "Predicted emotions", ["model", "emotion"], **common)
        self._warnings = Counter("warnings", "Warnings about recordings", ["code"], **common)
        self.requests_in_progress = Gauge("requests_running", "HTTP requests in progress", **common)
        self.streams = Gauge("streams", "Open streams", **common)

    def record_prediction(self, result: EmotionResult) -> None:
        """Count the audio, emotion and warnings of a result."""
        self._audio.labels(result.model).inc(result.duration_s)
        self._emotions.labels(result.model, result.emotion).inc()
        for warning in result.warnings:
            self._warnings.labels(warning.code).inc()

    def record_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request and its latency in seconds."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class MetricsMiddleware:
    """Middleware that counts requests by their route.

    The label is the matched route and not the path of the request, which untrusted clients could vary without limit.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._metrics.requests_in_progress.track_inprogress():
            try:
                await self._app(scope, receive, send_and_record)
            finally:
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.record_request(route, status, time.perf_counter() - start)
