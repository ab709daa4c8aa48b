"""Load teachers that another project trained, and map their classes to the experiment's.

Shape suffixes: B utterances, C the experiment's classes, E the external teacher's classes.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lakd_ray import storage
from lakd_ray.config import ExternalTeacherConfig
from lakd_ray.errors import ConfigError
from lakd_ray.labels import canonical_emotion
from lakd_ray.models import pretrained
from lakd_ray.models.checkpoint import load_checkpoint
from lakd_ray.models.classifier import EmotionClassifier
from lakd_ray.precision import upcast

# A class that the teacher lacks gets e^-10 times the probability of its least likely class.
_UNKNOWN_CLASS_MARGIN = 10.0

_HEAD_LAYERS = ("projector.", "classifier.")

logger = logging.getLogger(__name__)


class ClassMapping(nn.Module):
    """Map logits [B, E] to logits [B, C].

    Probabilities of classes that map to the same class add up; those of unmapped classes are distributed over the rest.

    Args:
        source_indices: for each of the C classes, the indices of the teacher's classes that map to it; may be empty.
    """

    def __init__(self, source_indices: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._source_indices = [list(indices) for indices in source_indices]

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Return the logits of the experiment's classes, shape [B, C]."""
        logits_BE = upcast(logits_BE)
        known = [logits_BE[:, indices].logsumexp(dim=-1) for indices in self._source_indices if indices]
        least_B = torch.stack(known).min(dim=0).values - _UNKNOWN_CLASS_MARGIN
        columns = iter(known)
        return torch.stack([next(columns) if indices else least_B for indices in self._source_indices], dim=-1)


def load_external_teacher(spec: ExternalTeacherConfig, emotions: Sequence[str]) -> EmotionClassifier:
    """Load an external teacher in eval mode, with the experiment's classes.

    Raises:
        ConfigError: it cannot be loaded, has no weights of a head, or has none of the experiment's classes.
        StorageError: it is a corrupted checkpoint of this project.
    """
    network = (
        load_checkpoint(spec.checkpoint)[0].network if is_lakd_checkpoint(spec) else _load_transformers_model(spec)
    )
    labels = [network.config.id2label[index] for index in range(network.config.num_labels)]
    mapped = [spec.emotion_map.get(label, canonical_emotion(label)) for label in labels]
    source_indices = [[index for index, label in enumerate(mapped) if label == emotion] for emotion in emotions]
    unknown = sorted(spec.emotion_map.keys() - set(labels))
    if unknown or not any(source_indices):
        problem = f"`emotion_map` maps {', '.join(unknown)}" if unknown else f"expected some of {', '.join(emotions)}"
        raise ConfigError(
            f"external teacher {spec.name} has the classes {', '.join(labels)}; {problem}. Map its classes with "
            "`emotion_map: {its class: our class}`."
        )
    if missing := [emotion for emotion, indices in zip(emotions, source_indices, strict=True) if not indices]:
        logger.warning(
            f"external teacher {spec.name} has the classes {', '.join(labels)}, none of them for "
            f"{', '.join(missing)}, which get almost no probability. If one of them is meant, map it with `emotion_map`"
        )
    head = getattr(network, "head", network)  # a language-aware student as a teacher has its final layer there
    head.classifier = nn.Sequential(head.classifier, ClassMapping(source_indices))
    network.config.id2label = dict(enumerate(emotions))
    return EmotionClassifier(network).eval()


def is_lakd_checkpoint(spec: ExternalTeacherConfig) -> bool:
    """Return whether the external teacher is a complete checkpoint of this project."""
    return ("/" in spec.checkpoint) and storage.exists(storage.join(spec.checkpoint, storage.CHECKSUMS_FILE))


def _load_transformers_model(spec: ExternalTeacherConfig) -> Any:
    try:
        network, loading = pretrained.load_network(spec.checkpoint, spec.revision)
    except pretrained.LOADING_ERRORS as error:
        raise ConfigError(
            f"cannot load teacher {spec.name} from {spec.checkpoint}: {error}. Expected a checkpoint of this project, "
            "a hub name (with network access or a filled cache) or a folder with config.json and model.safetensors. If "
            "it has only pytorch_model.bin, run `lakd to-safetensors NAME FOLDER` and use that folder."
        ) from error
    if missing := sorted(key for key in loading["missing_keys"] if key.startswith(_HEAD_LAYERS)):
        raise ConfigError(
            f"external teacher {spec.name}: {spec.checkpoint} has no weights {', '.join(missing)}, so its classes "
            "would be random. Expected a classifier with the head of transformers: a base model has none, and some "
            "published models have one of their own, which transformers does not load."
        )
    return network
