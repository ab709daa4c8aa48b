"""Speech encoders with classification heads: building, batch-independent forward, checkpoints."""

from lakd_ray.models.checkpoint import Card, build, load, save
from lakd_ray.models.classifier import EmotionClassifier, pad

__all__ = ["Card", "EmotionClassifier", "build", "load", "pad", "save"]
