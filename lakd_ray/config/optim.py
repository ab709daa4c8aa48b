"""The sections `teacher` and `student` (a recipe: a model and its training) with `optim` and `label_loss`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from lakd_ray.config.base import Section
from lakd_ray.config.model import ModelConfig


class OptimConfig(Section):
    """The AdamW optimizer, its learning rate schedule and early stopping."""

    epochs: int = Field(20, ge=1)
    """Number of passes over the training split."""
    lr: float = Field(3e-5, gt=0)
    """Peak learning rate."""
    head_lr: float | None = Field(None, gt=0)
    """Peak learning rate of the randomly initialized head; null: `lr`."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay, applied to matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's coefficients of the running averages of the gradient and its square."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Fraction of all steps in which the learning rate rises linearly from zero."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the learning rate after warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Maximum gradient norm; larger gradients are scaled down."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the exponential moving average of the weights that is evaluated on dev and saved in checkpoints.
    0: no average; 0.999 is usual."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Epochs without a better UR on dev after which training stops; null: train all epochs."""


class LabelLossConfig(Section):
    """The loss against the labels: w (1 - p)^gamma (-log p), p the probability of the label."""

    class_balance: float = Field(0.0, ge=0, le=1)
    """b of the class weights (1 - b) / (1 - b^n), n the training utterances of the class. 0: equal weights; 1: 1/n."""
    focal_gamma: float = Field(0.0, ge=0)
    """Focal loss exponent gamma, which reduces the loss of easy utterances; 2 in the source, 0: off."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Fraction of the label's probability that is spread over all classes."""

    @model_validator(mode="after")
    def _validate_focal_gamma(self) -> Self:
        if self.focal_gamma and self.label_smoothing:
            raise ValueError("focal loss is not defined for smoothed labels: set focal_gamma or label_smoothing to 0")
        return self


class Recipe(Section):
    """A model and its training settings."""

    model: ModelConfig
    """The speech encoder and the classification head."""
    optim: OptimConfig = OptimConfig()
    """The optimizer and its schedule."""
    label_loss: LabelLossConfig = LabelLossConfig()
    """The loss against the labels; students add the distillation term to it."""
