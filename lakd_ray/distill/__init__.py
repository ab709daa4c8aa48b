"""Losses and teacher weightings: pure functions of tensors. docs/method.md has the formulas and where they are from."""

from lakd_ray.distill.attention import mixture_losses
from lakd_ray.distill.hidden import hidden_state_losses
from lakd_ray.distill.labels import class_weights, label_losses
from lakd_ray.distill.losses import DistillationLoss, distillation_loss
from lakd_ray.distill.weightings import WEIGHTINGS, WeightingInputs, WeightingLanguages, teacher_weights

__all__ = [
    "WEIGHTINGS",
    "DistillationLoss",
    "WeightingInputs",
    "WeightingLanguages",
    "class_weights",
    "distillation_loss",
    "hidden_state_losses",
    "label_losses",
    "mixture_losses",
    "teacher_weights",
]
