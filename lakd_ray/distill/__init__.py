"""Distillation losses and teacher weightings: pure functions of tensors."""

from lakd_ray.distill.losses import DistillationLoss, UtteranceLosses, distillation_loss, utterance_losses
from lakd_ray.distill.weightings import WEIGHTINGS, Languages, teacher_weights

__all__ = [
    "WEIGHTINGS",
    "DistillationLoss",
    "Languages",
    "UtteranceLosses",
    "distillation_loss",
    "teacher_weights",
    "utterance_losses",
]
