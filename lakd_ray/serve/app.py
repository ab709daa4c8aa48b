"""The Ray Serve application: an ingress that speaks HTTP and decodes, and the model behind it.

    client -> Serve's proxy -> Ingress (checks, decodes) -> ModelReplica x replicas (batches, predicts)
                                                         -> CanaryReplica, if a second model is tried

`build` makes it from plain values, so a Serve config file can name it:

    applications:
      - name: lakd
        import_path: lakd_ray.serve.app:build
        args: {checkpoint: "s3://bucket/run", serve: {replicas: 2}}

Rolled out anew with another checkpoint (`serve deploy`), a replica leaves when its successor is there.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, Wave
from lakd_ray.config import Backend, Section, ServeConfig, to_dict
from lakd_ray.errors import CheckpointError, ConfigError
from lakd_ray.grouping import group_by_budget
from lakd_ray.inference.results import ModelInfo, ModelPredictions
from lakd_ray.serve.api import ModelRouter, create_app
from lakd_ray.serve.decoding import RequestDecoder
from lakd_ray.serve.upload import RequestError

BATCH_WAIT_TIMEOUT_S = 0.005
MAX_CALL_AUDIO_S = 30.0  # seconds of audio in one call of a replica: a timeline is spread over replicas
MAX_ONGOING_REQUESTS = 32  # requests that one replica holds: the batch that runs and the next ones
MAX_QUEUED_REQUESTS = 64  # requests that wait in the proxy before it answers 429
TARGET_ONGOING_REQUESTS = 8  # requests of one replica at a time that autoscaling aims at
MAX_CALL_ATTEMPTS = 4  # of one call, when replicas are lost under it
LOGGING_CONFIG = {"log_level": "WARNING", "enable_access_log": False}


class AppArgs(Section):
    """What `build` takes."""

    checkpoint: str
    """Sealed checkpoint folder: an absolute path that every node sees, or s3://bucket/prefix."""
    serve: ServeConfig = ServeConfig()
    """The `serve` section. Host and port are the proxy's, which is not this application's to choose."""


PredictRequest = tuple[list[Wave], str | None]


class ModelReplica:
    """One copy of the model."""

    def __init__(self, checkpoint: str, cpus: int, backend: Backend):
        from lakd_ray.inference.predictor import Predictor, max_batch_seconds  # loads torch, only where the model runs

        self._predictor = Predictor.load(checkpoint, threads=cpus, backend=backend)
        self._predictor.warmup()
        most = max_batch_seconds()

        def seconds(items: list[PredictRequest]) -> int:
            """Of audio; a longer recording fills a batch, for Serve refuses one that is larger."""
            each = (sum(map(len, waves)) / SAMPLE_RATE for waves, _ in items)
            return sum(min(most, math.ceil(one)) for one in each)

        # The forward pass blocks this replica's own event loop on purpose: requests that arrive meanwhile come together
        # in the next batch. In a thread they would not, for Serve closes a batch every few milliseconds, busy or not.
        @serve.batch(max_batch_size=most, batch_wait_timeout_s=BATCH_WAIT_TIMEOUT_S, batch_size_fn=seconds)
        async def together(items: list[PredictRequest]) -> list[list[dict[str, Any]]]:
            waves = [wave_T for waves, _ in items for wave_T in waves]
            languages = [language for waves, language in items for _ in waves]
            said = iter(self._predictor.predict_waves(waves, languages))
            return [[next(said).model_dump() for _ in waves] for waves, _ in items]

        self._predict_batched = together

    async def model_info(self) -> dict[str, Any]:
        """The model card as plain values."""
        return self._predictor.info.model_dump()

    async def __call__(self, waves: list[Wave], language: str | None) -> dict[str, Any]:
        """The values of what is `ModelPredictions` of recordings."""
        return {"info": await self.model_info(), "predictions": await self._predict_batched((waves, language))}


class Ingress:
    """Speaks HTTP; decodes, and waits for the models, never computes on them."""

    def __init__(
        self,
        stable: DeploymentHandle[ModelReplica],
        canary: DeploymentHandle[ModelReplica] | None,
        config: dict[str, Any],
    ):
        self._config = ServeConfig.model_validate(config)
        share = 0.0 if self._config.canary is None else self._config.canary.traffic_fraction
        self._router = ModelRouter(RemoteModel(stable), None if canary is None else RemoteModel(canary), share)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The API; `serve.ingress` asks for it when a replica starts, so nothing of it is pickled."""
        return create_app(self._router, self._config, RequestDecoder(self._config.decoder_processes))


class RemoteModel:
    """The model behind its handle."""

    def __init__(self, handle: DeploymentHandle[ModelReplica]):
        self._handle = handle

    async def info(self) -> ModelInfo:
        """What it is."""
        return ModelInfo.model_validate(await self._call_with_retry(self._handle.model_info.remote))

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        """What it says of recordings; one answer is of one checkpoint, also while another one is rolled out."""
        for _ in range(MAX_CALL_ATTEMPTS):
            calls = [
                self._call_with_retry(partial(self._handle.remote, part, language))
                for part in _split_by_duration(waves)
            ]
            said = [ModelPredictions.model_validate(one) for one in await asyncio.gather(*calls)]
            if len({one.info.version for one in said}) == 1:
                return ModelPredictions(
                    info=said[0].info, predictions=tuple(each for one in said for each in one.predictions)
                )
        raise RequestError(503, "the model is being replaced; try again")

    async def _call_with_retry(self, call: Callable[[], Any]) -> Any:
        """Call a replica; if it is lost under the call, another one: what is asked changes nothing there."""
        for left in reversed(range(MAX_CALL_ATTEMPTS)):
            try:
                return await call()
            except (RayServeException, RayActorError) as error:
                if isinstance(error, RayActorError) and left:
                    continue
                raise RequestError(503, f"the model cannot be reached ({type(error).__name__}); try again") from error
        raise AssertionError("unreachable")


def _split_by_duration(waves: Sequence[Wave]) -> Iterator[list[Wave]]:
    """Split waves into calls of at most `MAX_CALL_AUDIO_S`, so that a timeline is spread over replicas."""
    return group_by_budget(waves, lambda wave_T: len(wave_T) / SAMPLE_RATE, MAX_CALL_AUDIO_S)


def build(args: dict[str, Any]) -> Application:
    """The application, from the values of `AppArgs`.

    Raises:
        ConfigError: an argument is unknown or impossible, or the checkpoint's path is relative.
        CheckpointError: there is no finished checkpoint.
    """
    try:
        given = AppArgs.model_validate(args)
    except ValidationError as error:
        raise ConfigError(f"arguments of the Serve application: {error}") from None
    limits = given.serve
    model = _model_deployment(given.checkpoint, limits, limits.replicas, "ModelReplica")
    canary = limits.canary and _model_deployment(
        limits.canary.checkpoint, limits, limits.canary.replicas, "CanaryReplica"
    )
    ingress = serve.deployment(
        name="Ingress",
        ray_actor_options={"num_cpus": 0},  # decoding is short: a CPU held for it could leave none for the model
        max_ongoing_requests=MAX_ONGOING_REQUESTS * (limits.max_replicas or limits.replicas),
        max_queued_requests=MAX_QUEUED_REQUESTS,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        **_DEPLOYMENT_OPTIONS,
    )(serve.ingress()(Ingress))
    return ingress.bind(model, canary, to_dict(limits))


_DEPLOYMENT_OPTIONS: dict[str, Any] = {
    "max_surge_percent": 100,  # a replica leaves when its successor is there
    "graceful_shutdown_wait_loop_s": 0.2,
    "logging_config": LOGGING_CONFIG,
}


def _model_deployment(checkpoint: str, config: ServeConfig, replicas: int, name: str) -> Application:
    """Replicas of a checkpoint."""
    if not storage.is_remote(checkpoint) and not Path(checkpoint).is_absolute():
        raise ConfigError(f"checkpoint {checkpoint!r}: replicas run elsewhere, give an absolute path or s3://")
    if not storage.exists(storage.join(checkpoint, storage.CHECKSUMS_FILE)):
        raise CheckpointError(f"{checkpoint} holds no finished checkpoint ({storage.CHECKSUMS_FILE} is missing)")
    count: dict[str, Any] = {"num_replicas": replicas}
    if config.max_replicas is not None:
        scaling = {
            "min_replicas": replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": TARGET_ONGOING_REQUESTS,
        }
        count = {"num_replicas": "auto", "autoscaling_config": scaling}
    return serve.deployment(
        name=name,
        ray_actor_options={"num_cpus": config.cpus},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_constructor_retry_count=2,
        **count,
        **_DEPLOYMENT_OPTIONS,
    )(ModelReplica).bind(checkpoint, config.cpus, config.backend)
