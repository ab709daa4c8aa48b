"""Speech encoders with classification heads: build, run, save and load them.

A new encoder family is added in `backbone`; `classifier` runs any of them; `checkpoint` is the on-disk format.
"""

from lakd_ray.models.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint, write_checkpoint
from lakd_ray.models.classifier import EmotionClassifier, encode_languages, pad_batch
from lakd_ray.models.factory import build_model
from lakd_ray.models.outputs import IDENTIFY_LANGUAGE, ClassifierOutput

__all__ = [
    "IDENTIFY_LANGUAGE",
    "CheckpointMetadata",
    "ClassifierOutput",
    "EmotionClassifier",
    "build_model",
    "encode_languages",
    "load_checkpoint",
    "pad_batch",
    "save_checkpoint",
    "write_checkpoint",
]
