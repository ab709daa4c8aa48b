"""The real HTTP API on a free port of this process, without Ray."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp

from lakd_ray.audio import Wave
from lakd_ray.config import ServeConfig
from lakd_ray.config.serve import ProxyLimits
from lakd_ray.inference.results import ModelInfo, ModelPredictions
from lakd_ray.serve.api import ModelRouter, create_app
from lakd_ray.serve.decoding import RequestDecoder
from lakd_ray.serve.model import ModelHandle
from lakd_ray.serve.proxy.connections import create_protocols
from lakd_ray.serve.proxy.middleware import ProxyMiddleware

if TYPE_CHECKING:
    from lakd_ray.inference.predictor import Predictor


class LocalModel:
    """A model handle whose replica is a predictor in this process."""

    def __init__(self, predictor: "Predictor") -> None:
        self._predictor = predictor

    async def info(self) -> ModelInfo:
        return self._predictor.info

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        predictions = self._predictor.predict_waves(waves, [language] * len(waves))
        return ModelPredictions(info=self._predictor.info, predictions=tuple(predictions))


@contextmanager
def local_endpoint(checkpoint: str, decoder: RequestDecoder) -> Iterator[str]:
    """Serve a checkpoint on a free port and yield the URL."""
    from lakd_ray.inference.predictor import Predictor  # loads torch

    with running_api(LocalModel(Predictor.load(checkpoint)), decoder) as url:
        yield url


@contextmanager
def running_api(model: ModelHandle, decoder: RequestDecoder, **settings: Any) -> Iterator[str]:
    """Serve the API of a model with settings of the `serve` section on a free port and yield the URL."""
    config = ServeConfig(**settings)
    app = create_app(ModelRouter(model), config, decoder)
    with running_server(app, config.proxy_limits) as url:
        yield url


@contextmanager
def running_server(app: ASGIApp, limits: ProxyLimits) -> Iterator[str]:
    """Serve an application on a free port as Ray Serve's proxy does, with the same limits, and yield the URL."""
    http, websocket = create_protocols(limits)
    app = ProxyMiddleware(app, limits)
    # without the lifespan, which would close the decoder that several tests share
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="error", http=http, ws=websocket)
    server = uvicorn.Server(config)
    with config.bind_socket() as socket:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        while not server.started:  # a bound socket does not listen yet
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
