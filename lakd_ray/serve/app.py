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
from lakd_ray.config import Backend, Section, Serve, dump
from lakd_ray.errors import CheckpointError, ConfigError
from lakd_ray.serve.answering import describe, predictions
from lakd_ray.serve.answers import ModelCard, Said
from lakd_ray.serve.api import Models, create_app
from lakd_ray.serve.decoding import Decoders
from lakd_ray.serve.upload import RequestError

BATCH_WAIT_S = 0.005
CALL_S = 30.0  # seconds of audio in one call of a replica: a timeline is spread over replicas
ONGOING = 32  # requests that one replica holds: the batch that runs and the next ones
QUEUED = 64  # requests that wait in the proxy before it answers 429
TARGET = 8  # requests of one replica at a time that autoscaling aims at
TRIES = 4  # of one call, when replicas are lost under it
QUIET = {"log_level": "WARNING", "enable_access_log": False}


class Arguments(Section):
    """What `build` takes."""

    checkpoint: str
    """Sealed checkpoint folder: an absolute path that every node sees, or s3://bucket/prefix."""
    serve: Serve = Serve()
    """The `serve` section. Host and port are the proxy's, which is not this application's to choose."""


Item = tuple[list[Wave], str | None]


class ModelReplica:
    """One copy of the model."""

    def __init__(self, checkpoint: str, cpus: int, backend: Backend):
        from lakd_ray.infer.predictor import Predictor, batch_seconds  # loads torch, only where the model runs

        self._predictor = Predictor.load(checkpoint, threads=cpus, backend=backend)
        self._predictor.warm()
        most = batch_seconds()

        def seconds(items: list[Item]) -> int:
            """Of audio; a longer recording fills a batch, for Serve refuses one that is larger."""
            each = (sum(map(len, waves)) / SAMPLE_RATE for waves, _ in items)
            return sum(min(most, math.ceil(one)) for one in each)

        # The forward pass blocks this replica's own event loop on purpose: requests that arrive meanwhile come together
        # in the next batch. In a thread they would not, for Serve closes a batch every few milliseconds, busy or not.
        @serve.batch(max_batch_size=most, batch_wait_timeout_s=BATCH_WAIT_S, batch_size_fn=seconds)
        async def together(items: list[Item]) -> list[list[dict[str, Any]]]:
            waves = [wave_T for waves, _ in items for wave_T in waves]
            languages = [language for waves, language in items for _ in waves]
            said = iter(predictions(self._predictor, waves, languages))
            return [[next(said).model_dump() for _ in waves] for waves, _ in items]

        self._together = together

    async def describe(self) -> dict[str, Any]:
        """The model card as plain values."""
        return describe(self._predictor).model_dump()

    async def __call__(self, waves: list[Wave], language: str | None) -> dict[str, Any]:
        """The values of what is `Said` of recordings."""
        return {"card": await self.describe(), "predictions": await self._together((waves, language))}


class Ingress:
    """Speaks HTTP; decodes, and waits for the models, never computes on them."""

    def __init__(
        self,
        stable: DeploymentHandle[ModelReplica],
        canary: DeploymentHandle[ModelReplica] | None,
        limits: dict[str, Any],
    ):
        self._limits = Serve.model_validate(limits)
        share = 0.0 if self._limits.canary is None else self._limits.canary.share
        self._models = Models(RemoteModel(stable), None if canary is None else RemoteModel(canary), share)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The API; `serve.ingress` asks for it when a replica starts, so nothing of it is pickled."""
        return create_app(self._models, self._limits, Decoders(self._limits.decoders))


class RemoteModel:
    """The model behind its handle."""

    def __init__(self, replica: DeploymentHandle[ModelReplica]):
        self._replica = replica

    async def card(self) -> ModelCard:
        """What it is."""
        return ModelCard.model_validate(await self._reach(self._replica.describe.remote))

    async def predict(self, waves: Sequence[Wave], language: str | None) -> Said:
        """What it says of recordings; one answer is of one checkpoint, also while another one is rolled out."""
        for _ in range(TRIES):
            calls = [self._reach(partial(self._replica.remote, part, language)) for part in _parts(waves)]
            said = [Said.model_validate(one) for one in await asyncio.gather(*calls)]
            if len({one.card.version for one in said}) == 1:
                return Said(card=said[0].card, predictions=tuple(each for one in said for each in one.predictions))
        raise RequestError(503, "the model is being replaced; try again")

    async def _reach(self, call: Callable[[], Any]) -> Any:
        """Call a replica; if it is lost under the call, another one: what is asked changes nothing there."""
        for left in reversed(range(TRIES)):
            try:
                return await call()
            except (RayServeException, RayActorError) as error:
                if isinstance(error, RayActorError) and left:
                    continue
                raise RequestError(503, f"the model cannot be reached ({type(error).__name__}); try again") from error
        raise AssertionError("unreachable")


def _parts(waves: Sequence[Wave]) -> Iterator[list[Wave]]:
    """What goes to a replica in one call."""
    part: list[Wave] = []
    seconds = 0.0
    for wave_T in waves:
        length = len(wave_T) / SAMPLE_RATE
        if part and seconds + length > CALL_S:
            yield part
            part, seconds = [], 0.0
        part.append(wave_T)
        seconds += length
    if part:
        yield part


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
    limits = given.serve
    model = _model(given.checkpoint, limits, limits.replicas, "ModelReplica")
    canary = limits.canary and _model(limits.canary.checkpoint, limits, limits.canary.replicas, "CanaryReplica")
    ingress = serve.deployment(
        name="Ingress",
        ray_actor_options={"num_cpus": 0},  # decoding is short: a CPU held for it could leave none for the model
        max_ongoing_requests=ONGOING * (limits.max_replicas or limits.replicas),
        max_queued_requests=QUEUED,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        **_LIFE,
    )(serve.ingress()(Ingress))
    return ingress.bind(model, canary, dump(limits))


_LIFE: dict[str, Any] = {
    "max_surge_percent": 100,  # a replica leaves when its successor is there
    "graceful_shutdown_wait_loop_s": 0.2,
    "logging_config": QUIET,
}


def _model(checkpoint: str, limits: Serve, replicas: int, name: str) -> Application:
    """Replicas of a checkpoint."""
    if not storage.is_remote(checkpoint) and not Path(checkpoint).is_absolute():
        raise ConfigError(f"checkpoint {checkpoint!r}: replicas run elsewhere, give an absolute path or s3://")
    if not storage.exists(storage.join(checkpoint, storage.SEAL)):
        raise CheckpointError(f"{checkpoint} holds no finished checkpoint ({storage.SEAL} is missing)")
    count: dict[str, Any] = {"num_replicas": replicas}
    if limits.max_replicas is not None:
        scaling = {"min_replicas": replicas, "max_replicas": limits.max_replicas, "target_ongoing_requests": TARGET}
        count = {"num_replicas": "auto", "autoscaling_config": scaling}
    return serve.deployment(
        name=name,
        ray_actor_options={"num_cpus": limits.cpus},
        max_ongoing_requests=ONGOING,
        max_constructor_retry_count=2,
        **count,
        **_LIFE,
    )(ModelReplica).bind(checkpoint, limits.cpus, limits.backend)
