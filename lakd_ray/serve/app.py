"""Define the Ray Serve application, with an ingress that handles HTTP and decodes audio, and replicas of the model.

    client -> Serve's proxy -> Ingress (checks, decodes) -> ModelReplica x replicas (batches, predicts)
                                                         -> CanaryReplica, if there is a canary

`build` creates it from plain values, so a Serve config file can refer to it:

    applications:
      - name: lakd
        import_path: lakd_ray.serve.app:build
        args: {checkpoint: "s3://bucket/run", serve: {replicas: 2}}

`serve deploy` with a different checkpoint is a rolling update: a replica stops when its successor is running.
"""

import math
from collections.abc import Callable, Sequence
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
from lakd_ray.errors import CheckpointError, ConfigError, DataError
from lakd_ray.inference.results import ModelInfo, ModelPredictions
from lakd_ray.serve.allocator import return_large_blocks
from lakd_ray.serve.api import ModelRouter, create_app
from lakd_ray.serve.auth import ApiKeys, KeyDigests, resolve_keys
from lakd_ray.serve.decoding import RequestDecoder
from lakd_ray.serve.draining import Drain
from lakd_ray.serve.errors import RequestError

BATCH_WAIT_TIMEOUT_S = 0.005
MAX_ONGOING_REQUESTS = 32  # requests of one replica: the running batch and those waiting for the next ones
MAX_INGRESS_REQUESTS = 512  # requests of the ingress, where they wait in fair turns and within limits
MAX_QUEUED_REQUESTS = 64  # requests that wait in the proxy before it responds with 429
TARGET_ONGOING_REQUESTS = 8  # concurrent requests per replica that autoscaling aims at
MAX_CALL_ATTEMPTS = 4  # attempts of one call if replicas die
LOGGING_CONFIG = {"log_level": "WARNING", "enable_access_log": False}


class AppArgs(Section):
    """Arguments of the application, the `args` of a Serve config file."""

    checkpoint: str
    """Checkpoint folder with its checksum file: an absolute path that all nodes share, or s3://bucket/prefix."""
    serve: ServeConfig = ServeConfig()
    """The `serve` section. `host` and `port` have no effect: they belong to Serve's proxy."""


PredictRequest = tuple[list[Wave], str | None]


class ModelReplica:
    """A replica of the model, which batches concurrent requests.

    Args:
        checkpoint: checkpoint folder.
        cpus: number of torch threads.
        backend: inference backend.
        emotions: the checkpoint's classes in the order of its responses; in the checkpoint's order if empty.
    """

    def __init__(self, checkpoint: str, cpus: int, backend: Backend, emotions: Sequence[str] = ()):
        # loads torch, which the ingress does not need
        from lakd_ray.inference.predictor import Predictor

        self._predictor = Predictor.load(checkpoint, emotions=emotions, threads=cpus, backend=backend)
        self._predictor.warmup()
        max_seconds = self._predictor.max_batch_seconds

        def batch_seconds(requests: list[PredictRequest]) -> int:
            """Return the size of a batch in seconds of audio.

            A request above the limit counts as one full batch, because Serve rejects larger ones.
            """
            durations = (sum(map(len, waves)) / SAMPLE_RATE for waves, _ in requests)
            return sum(min(max_seconds, math.ceil(duration_s)) for duration_s in durations)

        # The forward pass blocks the event loop of this replica on purpose, so that requests that arrive during it form
        # the next batch. With a thread they would not: Serve closes a batch every few milliseconds, busy or not.
        @serve.batch(max_batch_size=max_seconds, batch_wait_timeout_s=BATCH_WAIT_TIMEOUT_S, batch_size_fn=batch_seconds)
        async def predict_batched(requests: list[PredictRequest]) -> list[list[dict[str, Any]]]:
            waves = [wave_T for waves, _ in requests for wave_T in waves]
            languages = [language for waves, language in requests for _ in waves]
            predictions = iter(self._predictor.predict_waves(waves, languages))
            return [[next(predictions).model_dump() for _ in waves] for waves, _ in requests]

        self._predict_batched = predict_batched

    async def model_info(self) -> dict[str, Any]:
        """Return the fields of the model's `ModelInfo`."""
        return self._predictor.info.model_dump()

    async def __call__(self, waves: list[Wave], language: str | None) -> dict[str, Any]:
        """Return the fields of `ModelPredictions` for the given waves."""
        return {"info": await self.model_info(), "predictions": await self._predict_batched((waves, language))}


class Ingress:
    """The deployment with the HTTP API, which decodes recordings and calls the replicas."""

    def __init__(
        self,
        stable: DeploymentHandle[ModelReplica],
        canary: DeploymentHandle[ModelReplica] | None,
        config: dict[str, Any],
        keys: dict[str, Any],
    ):
        return_large_blocks()
        self._config, self._keys = ServeConfig.model_validate(config), KeyDigests.model_validate(keys)
        self._drain = Drain()
        fraction = 0.0 if self._config.canary is None else self._config.canary.traffic_fraction
        self._router = ModelRouter(RemoteModel(stable), None if canary is None else RemoteModel(canary), fraction)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Create the API; `serve.ingress` calls this in the replica, so the API is not pickled."""
        decoder = RequestDecoder(self._config.decoder_processes)
        return create_app(self._router, self._config, decoder, drain=self._drain, keys=ApiKeys(self._keys))

    async def drain(self, timeout_s: float) -> int:
        """Reject new requests, wait for those in progress, and return how many are left after `timeout_s`."""
        return await self._drain.run(timeout_s)


class RemoteModel:
    """A model behind a deployment handle."""

    def __init__(self, handle: DeploymentHandle[ModelReplica]):
        self._handle = handle

    async def info(self) -> ModelInfo:
        """Return the name, version and classes of the model."""
        return ModelInfo.model_validate(await self._call_with_retry(self._handle.model_info.remote))

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        """Return the predictions for waves of one language; None lets the model identify it."""
        output = await self._call_with_retry(partial(self._handle.remote, [*waves], language))
        return ModelPredictions.model_validate(output)

    async def _call_with_retry(self, call: Callable[[], Any]) -> Any:
        """Call a replica; retry on a different one if it dies. Requests are idempotent."""
        for remaining in reversed(range(MAX_CALL_ATTEMPTS)):
            try:
                return await call()
            except (RayServeException, RayActorError) as error:
                if isinstance(error, RayActorError) and remaining:
                    continue
                raise RequestError(
                    503, f"the model is unavailable ({type(error).__name__}): send the request again"
                ) from error
        raise AssertionError("unreachable")


def build(args: dict[str, Any]) -> Application:
    """Build the application from the values of `AppArgs`.

    Raises:
        ConfigError: an argument is unknown or invalid, the path of the checkpoint is relative, the canary has other
            classes than the stable model, or the API keys are missing or invalid.
        CheckpointError: the checkpoint does not exist or is incomplete.
    """
    try:
        app_args = AppArgs.model_validate(args)
    except ValidationError as error:
        raise ConfigError(f"arguments of the Serve application: {error}") from None
    config = app_args.serve
    keys = resolve_keys(config)
    model = _model_deployment(app_args.checkpoint, config, config.replicas, "ModelReplica")
    canary = config.canary and _model_deployment(
        config.canary.checkpoint,
        config,
        config.canary.replicas,
        "CanaryReplica",
        _check_canary_classes(app_args.checkpoint, config.canary.checkpoint),
    )
    ingress = serve.deployment(
        name="Ingress",
        ray_actor_options={"num_cpus": 0},  # decoding is short; a reserved CPU could leave too few for the model
        max_ongoing_requests=MAX_INGRESS_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        **_DEPLOYMENT_OPTIONS,
    )(serve.ingress()(Ingress))
    return ingress.bind(model, canary, to_dict(config), keys.model_dump())


_DEPLOYMENT_OPTIONS: dict[str, Any] = {
    "max_surge_percent": 100,  # a replica stops when its successor is running
    "graceful_shutdown_wait_loop_s": 0.2,
    "logging_config": LOGGING_CONFIG,
}


def _check_canary_classes(stable: str, canary: str) -> tuple[str, ...]:
    """Return the classes of the stable model after checking that the canary has the same ones, in any order.

    Raises:
        ConfigError: the canary has others: the classes of a response would depend on the recording.
    """
    from lakd_ray.models.checkpoint import read_metadata  # loads torch, which only an endpoint with a canary needs here

    emotions = read_metadata(stable).emotions
    remedy = f"serve it at its own endpoint, or choose a canary with the classes of the stable model {stable}"
    try:
        read_metadata(canary).class_indices(emotions, remedy=remedy)
    except DataError as error:
        raise ConfigError(f"`serve.canary`: {error}") from None
    return emotions


def _model_deployment(
    checkpoint: str, config: ServeConfig, replicas: int, name: str, emotions: Sequence[str] = ()
) -> Application:
    """Return the deployment of a checkpoint's replicas."""
    if not storage.is_remote(checkpoint) and not Path(checkpoint).is_absolute():
        raise ConfigError(
            f"checkpoint {checkpoint!r} is a relative path, but replicas run on other nodes: use an absolute path or s3://"
        )
    if not storage.exists(storage.join(checkpoint, storage.CHECKSUMS_FILE)):
        raise CheckpointError(f"{checkpoint} is not a complete checkpoint: {storage.CHECKSUMS_FILE} is missing")
    scaling_options: dict[str, Any] = {"num_replicas": replicas}
    if config.max_replicas is not None:
        autoscaling = {
            "min_replicas": replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": TARGET_ONGOING_REQUESTS,
        }
        scaling_options = {"num_replicas": "auto", "autoscaling_config": autoscaling}
    return serve.deployment(
        name=name,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_constructor_retry_count=2,
        **scaling_options,
        **_DEPLOYMENT_OPTIONS,
    )(ModelReplica).bind(checkpoint, config.cpus, config.backend, tuple(emotions))
