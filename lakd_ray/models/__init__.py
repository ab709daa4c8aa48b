"""Speech encoders with classification heads: building, batch-independent forward, checkpoints."""

from lakd_ray.models.building import build
from lakd_ray.models.checkpoint import Card, load, save, write
from lakd_ray.models.classifier import EmotionClassifier, language_ids, pad
from lakd_ray.models.outputs import IDENTIFY, Outputs

__all__ = ["IDENTIFY", "Card", "EmotionClassifier", "Outputs", "build", "language_ids", "load", "pad", "save", "write"]
