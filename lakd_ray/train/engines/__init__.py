"""Chooses the engine."""

from lakd_ray.config import OptimConfig, TrainConfig
from lakd_ray.models import EmotionClassifier
from lakd_ray.train.engines.base import Engine


def build_engine(model: EmotionClassifier, optim: OptimConfig, train: TrainConfig, *, total_steps: int) -> Engine:
    """The engine that `train.engine` names."""
    if train.engine == "torch":
        from lakd_ray.train.engines.torch import TorchEngine

        return TorchEngine(model, optim, train, total_steps=total_steps)
    from lakd_ray.train.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(model, optim, train, total_steps=total_steps)
