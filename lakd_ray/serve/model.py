"""The interface between the HTTP API and a model, in this process or a different one."""

from collections.abc import Sequence
from typing import Protocol

from lakd_ray.audio import Recording, Wave
from lakd_ray.inference.options import PredictOptions
from lakd_ray.inference.recordings import assemble_result, plan_waves
from lakd_ray.inference.results import EmotionResult, ModelInfo, ModelPredictions


class ModelHandle(Protocol):
    """A model behind an asynchronous interface, such as a deployment handle of Ray Serve."""

    async def info(self) -> ModelInfo:
        """Return the name, version and classes of the model."""

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        """Return the predictions for waves of one language; None lets the model identify it."""


async def predict_recording(model: ModelHandle, recording: Recording, options: PredictOptions) -> EmotionResult:
    """Return the result of a recording from one call of the model."""
    output = await model.predict(plan_waves(recording, options), options.language)
    return assemble_result(output.info, recording, output.predictions, options)
