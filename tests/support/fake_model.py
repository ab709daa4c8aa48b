"""A model without weights, for tests of the code around a model."""

import asyncio
from collections.abc import Sequence
from typing import Any

from lakd_ray.audio import Wave
from lakd_ray.inference.results import ModelInfo, ModelPredictions, Prediction

MODEL_INFO = ModelInfo(
    model="student", version="1f", emotions=("anger", "happiness", "neutral", "sadness"), languages=("en", "de")
)


class FakeModel:
    """A model that predicts neutral and records its inputs.

    Args:
        error: raised by each prediction.
        name: the model's name.
        hangs: never return a prediction.
        language_fields: fields of `Prediction` about the identified language.
    """

    def __init__(
        self, error: Exception | None = None, *, name: str = "student", hangs: bool = False, **language_fields: Any
    ) -> None:
        self.waves: list[Wave] = []
        self.languages: list[str | None] = []
        self._error, self._name, self._hangs, self._language_fields = error, name, hangs, language_fields

    async def info(self) -> ModelInfo:
        return MODEL_INFO.model_copy(update={"model": self._name})

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        if self._error:
            raise self._error
        if self._hangs:
            await asyncio.Event().wait()
        self.waves += waves
        self.languages += [language] * len(waves)
        prediction = Prediction(probabilities=(0.1, 0.2, 0.6, 0.1), **self._language_fields)
        return ModelPredictions(info=await self.info(), predictions=(prediction,) * len(waves))
