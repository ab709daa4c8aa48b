"""The Ray Serve application: an ingress that speaks HTTP and decodes, and the model behind it.

    client -> Serve's proxy -> Ingress (checks, decodes) -> ModelReplica x replicas (batches, predicts)

`build` makes it from plain values, so a Serve config file can name it:

    applications:
      - name: lakd
        import_path: lakd_ray.serve.app:build
        args: {checkpoint: "s3://bucket/run", serve: {replicas: 2}}

Legend: B recordings, T samples, C emotions.
"""

from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, Wave
from lakd_ray.config import Section, Serve, dump
from lakd_ray.errors import CheckpointError, ConfigError
from lakd_ray.serve.answers import ModelCard, Prediction
from lakd_ray.serve.api import create_app
from lakd_ray.serve.upload import RequestError

MAX_BATCH = 16  # the predictor cuts it further, by padded seconds
BATCH_WAIT_S = 0.01
ONGOING = 2 * MAX_BATCH  # requests that one replica holds: the batch that runs and the next one
QUEUED = 64  # requests that wait in the proxy before it answers 429
QUIET = {"log_level": "WARNING", "enable_access_log": False}


class Arguments(Section):
    """What `build` takes."""

    checkpoint: str
    """Sealed checkpoint folder: an absolute path that every node sees, or s3://bucket/prefix."""
    serve: Serve = Serve()
    """The `serve` section. Host and port are the proxy's, which is not this application's to choose."""


class ModelReplica:
    """One copy of the model."""

    def __init__(self, checkpoint: str, cpus: int):
        from lakd_ray.infer.predictor import Predictor  # loads torch, only where the model runs

        self._predictor = Predictor.load(checkpoint, threads=cpus)
        self._predictor.probabilities([np.zeros(SAMPLE_RATE, np.float32)])  # the first call is slow: not a client's

    async def describe(self) -> dict[str, Any]:
        """The model card as plain values."""
        model = self._predictor
        card = ModelCard(
            model=model.model_id,
            version=model.version,
            emotions=model.emotions,
            languages=model.languages,
            hears=model.hears,
        )
        return card.model_dump()

    async def __call__(self, wave_T: Wave, language: str | None) -> dict[str, Any]:
        """The values of a `Prediction` of one recording."""
        return await self._predict((wave_T, language))

    # The forward pass blocks this replica's own event loop on purpose: requests that arrive meanwhile come together in
    # the next batch. In a thread they would not, for `serve.batch` closes a batch every few milliseconds, busy or not.
    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def _predict(self, asked: list[tuple[Wave, str | None]]) -> list[dict[str, Any]]:
        from lakd_ray.infer.predictor import softmax  # as above

        waves, languages = zip(*asked, strict=True)
        logits_BC, languages_BL = self._predictor.answer(waves, languages)
        said: list[dict[str, Any]] = [{"probabilities": row} for row in softmax(logits_BC).tolist()]
        for one, heard_L in zip(said, [] if languages_BL is None else softmax(languages_BL), strict=False):
            place = int(heard_L.argmax())
            one |= {"language": self._predictor.hears[place], "language_probability": float(heard_L[place])}
        return said


class Ingress:
    """Speaks HTTP; waits for the model, never computes on it."""

    def __init__(self, replica: DeploymentHandle[ModelReplica], limits: dict[str, Any]):
        self._model = RemoteModel(replica)
        self._limits = Serve.model_validate(limits)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The API; `serve.ingress` asks for it when a replica starts, so nothing of it is pickled."""
        return create_app(self._model, self._limits)


class RemoteModel:
    """The model behind its handle."""

    def __init__(self, replica: DeploymentHandle[ModelReplica]):
        self._replica = replica
        self._card: ModelCard | None = None

    async def card(self) -> ModelCard:
        """What it is; asked once, for an application never changes its checkpoint."""
        if self._card is None:
            self._card = ModelCard.model_validate(await self._reach(self._replica.describe.remote()))
        return self._card

    async def predict(self, wave_T: Wave, language: str | None) -> Prediction:
        """What it says of a recording."""
        return Prediction.model_validate(await self._reach(self._replica.remote(wave_T, language)))

    async def _reach(self, response: Any) -> Any:
        try:
            return await response
        except (RayServeException, RayActorError) as error:
            raise RequestError(503, f"the model cannot be reached ({type(error).__name__}); try again") from error


def build(args: dict[str, Any]) -> Application:
    """The application, from the values of `Arguments`.

    Raises:
        ConfigError: an argument is unknown or impossible, or the checkpoint's path is relative.
        CheckpointError: there is no finished checkpoint.
    """
    try:
        given = Arguments.model_validate(args)
    except ValidationError as error:
        raise ConfigError(f"arguments of the Serve application: {error}") from None
    if not storage.is_remote(given.checkpoint) and not Path(given.checkpoint).is_absolute():
        raise ConfigError(f"checkpoint {given.checkpoint!r}: replicas run elsewhere, give an absolute path or s3://")
    if not storage.exists(storage.join(given.checkpoint, storage.SEAL)):
        raise CheckpointError(f"{given.checkpoint} holds no finished checkpoint ({storage.SEAL} is missing)")
    limits = given.serve
    replica = serve.deployment(
        num_replicas=limits.replicas,
        ray_actor_options={"num_cpus": limits.cpus},
        max_ongoing_requests=ONGOING,
        max_constructor_retry_count=2,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=QUIET,
    )(ModelReplica)
    ingress = serve.deployment(
        name="Ingress",
        ray_actor_options={"num_cpus": 0},  # decoding is short: a CPU held for it could leave none for the model
        max_ongoing_requests=ONGOING * limits.replicas,
        max_queued_requests=QUEUED,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=QUIET,
    )(serve.ingress()(Ingress))
    return ingress.bind(replica.bind(given.checkpoint, limits.cpus), dump(limits))
