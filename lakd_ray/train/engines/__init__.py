"""Engines update the weights of a model; `build_engine` builds the one that `train.engine` names.

`base` has the interface that the trainer uses, `torch` and `deepspeed` implement it, and `optimizer` has the parameter
groups, the learning rate schedule and weight averaging that they share.
"""

import logging
from collections.abc import Callable

from lakd_ray.config import OptimConfig, TrainConfig
from lakd_ray.models import EmotionClassifier
from lakd_ray.train.engines.base import Engine

logger = logging.getLogger(__name__)

__all__ = ["Engine", "build_engine"]


def build_engine(
    model: EmotionClassifier,
    optim: OptimConfig,
    train: TrainConfig,
    *,
    total_steps: int,
    log: Callable[[str], None] = logger.info,
) -> Engine:
    """Build the engine that `train.engine` names; `log` is called with a sentence if that takes long."""
    if train.engine == "torch":
        from lakd_ray.train.engines.torch import TorchEngine

        return TorchEngine(model, optim, train, total_steps=total_steps)
    from lakd_ray.train.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(model, optim, train, total_steps=total_steps, log=log)
