"""A model that needs no weights, for tests of what is around it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from lakd_ray.audio import Wave
from lakd_ray.inference.results import ModelInfo, ModelPredictions, Prediction

CARD = ModelInfo(
    model="student", version="1f", emotions=("anger", "happiness", "neutral", "sadness"), languages=("en", "de")
)


class StandIn:
    """Remembers what it heard, and says that it is neutral."""

    def __init__(
        self, fault: Exception | None = None, *, name: str = "student", waits: bool = False, **listens: Any
    ) -> None:
        self.received: list[Wave] = []
        self.told: list[str | None] = []
        self._fault, self._name, self._waits, self._listens = fault, name, waits, listens

    async def info(self) -> ModelInfo:
        return CARD.model_copy(update={"model": self._name})

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        if self._fault:
            raise self._fault
        if self._waits:
            await asyncio.Event().wait()
        self.received += waves
        self.told += [language] * len(waves)
        one = Prediction(probabilities=(0.1, 0.2, 0.6, 0.1), **self._listens)
        return ModelPredictions(info=await self.info(), predictions=(one,) * len(waves))
