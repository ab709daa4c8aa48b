"""Chooses the engine."""

from lakd_ray.config import Optim, Train
from lakd_ray.models import EmotionClassifier
from lakd_ray.train.engine import Engine


def make(model: EmotionClassifier, optim: Optim, train: Train, *, steps: int) -> Engine:
    """The engine that `train.engine` names."""
    if train.engine == "torch":
        from lakd_ray.train.plain import PlainEngine

        return PlainEngine(model, optim, train, steps=steps)
    from lakd_ray.train.zero import ZeroEngine

    return ZeroEngine(model, optim, train, steps=steps)
