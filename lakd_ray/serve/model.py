"""The interface between the HTTP API and a model, in this process or a different one."""

from collections.abc import Sequence
from typing import Protocol

from lakd_ray.audio import Wave
from lakd_ray.inference.results import ModelInfo, ModelPredictions


class ModelHandle(Protocol):
    """A model behind an asynchronous interface, such as a deployment handle of Ray Serve."""

    async def info(self) -> ModelInfo:
        """Return the name, version and classes of the model."""

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        """Return the predictions for waves of one language; None lets the model identify it."""
