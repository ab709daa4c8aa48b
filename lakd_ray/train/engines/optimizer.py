"""Parameter groups, learning rate schedule and weight averaging, which all engines share."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lakd_ray.config import OptimConfig
from lakd_ray.models import EmotionClassifier


def build_param_groups(model: EmotionClassifier, optim: OptimConfig) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate and weight decay: `head_lr` for the head, decay for matrices only."""
    encoder = {id(parameter) for parameter in model.backbone.encoder.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            rate = optim.lr if id(parameter) in encoder or optim.head_lr is None else optim.head_lr
            decay = optim.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in sorted(groups.items(), key=lambda entry: (entry[0][0], -entry[0][1]))
    ]


def place_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Move the state of each weight to the weight's device, where fused AdamW needs it, including the step number.

    Loading can leave it on the CPU or on the device that saved it, and can share one step number among several
    weights, each of which would increment it.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value):
                state[name] = value.to(weight.device, copy=name == "step")


def make_lr_lambda(optim: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """Return the learning rate factor by step: linear warm-up, then constant, or linear or cosine decay to zero."""
    warmup = round(optim.warmup_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
            optim.lr_schedule
        ]

    return factor


class ExponentialMovingAverage:
    """Average weights exponentially over steps, in fp32 (Polyak and Juditsky 1992; the warm-up is TensorFlow's).

    Args:
        weights: the weights to average, in fp32, which `update` reads.
        decay: weight of the old average in an update; in the first n updates it is at most (1 + n) / (10 + n).

    Attributes:
        num_updates: number of updates so far.
    """

    def __init__(self, weights: Sequence[Tensor], decay: float) -> None:
        self.num_updates = 0
        self._weights, self._decay = list(weights), decay
        self._averages = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights."""
        self.num_updates += 1
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Exchange the weights and their averages while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self._weights, self._averages, strict=True):
            current = weight.clone()
            weight.copy_(average)
            average.copy_(current)
