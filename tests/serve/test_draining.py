"""The orderly end of the endpoint: requests in progress get their responses, new ones a 503 that clients retry."""

import asyncio
import json
from typing import Any

import httpx
from starlette.testclient import TestClient
from support.fake_model import FakeModel

from lakd_ray.config import ServeConfig
from lakd_ray.serve.api import ModelRouter, create_app
from lakd_ray.serve.draining import Drain, DrainMiddleware


def test_requests_in_progress_are_answered_and_new_ones_rejected():
    async def scenario() -> None:
        release = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await release.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})

        drain = Drain()
        transport = httpx.ASGITransport(DrainMiddleware(app, drain))
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            old = [asyncio.create_task(client.get("/")) for _ in range(8)]
            while drain.in_progress < 8:
                await asyncio.sleep(0.01)
            draining = asyncio.create_task(drain.run(60))
            await asyncio.sleep(0.05)
            new = await client.post("/v1/emotion", content=b"x")
            assert (new.status_code, new.headers["Retry-After"]) == (503, "5")
            assert "send the request again" in new.json()["error"]
            assert not draining.done()
            release.set()
            assert await draining == 0
            assert [(await task).text for task in old] == ["done"] * 8

    asyncio.run(scenario())


def test_a_drain_ends_at_its_limit():
    drain = Drain()
    drain.in_progress = 3
    assert asyncio.run(drain.run(0.1)) == 3


def test_the_api_rejects_requests_and_streams_while_it_drains(monkeypatch):
    class Decoder:
        async def warmup(self) -> None: ...
        def close(self) -> None: ...

    drain = Drain()
    app = create_app(ModelRouter(FakeModel()), ServeConfig(), Decoder(), drain=drain)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.get("/v1/model").status_code == 200
        asyncio.run(drain.run(1))
        rejected = client.get("/v1/model")
        assert rejected.status_code == 503 and set(json.loads(rejected.content)) == {"error"}
