"""Losses and teacher weightings as pure functions of tensors.

docs/explanation/method.md has the formulas and their sources. The settings travel as the configuration's own objects:
`DistillLossConfig` and `LabelLossConfig`, which validate their values.
"""

from lakd_ray.distill.attention_loss import mixture_losses
from lakd_ray.distill.distillation import DistillationLoss, distillation_loss
from lakd_ray.distill.label_loss import class_weights, label_losses
from lakd_ray.distill.teacher_weighting import WEIGHTINGS, WeightingInputs, match_languages, teacher_weights

__all__ = [
    "WEIGHTINGS",
    "DistillationLoss",
    "WeightingInputs",
    "class_weights",
    "distillation_loss",
    "label_losses",
    "match_languages",
    "mixture_losses",
    "teacher_weights",
]
