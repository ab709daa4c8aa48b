"""Teachers that were trained elsewhere: their classes become the experiment's.

Shape suffixes: B utterances, C the experiment's classes, E theirs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lakd_ray import storage
from lakd_ray.config import ExternalTeacherConfig
from lakd_ray.errors import ConfigError
from lakd_ray.models.checkpoint import load_checkpoint
from lakd_ray.models.classifier import EmotionClassifier

_UNKNOWN_CLASS_MARGIN = (
    10.0  # a class that a teacher does not know has e^-10 of the probability of its least likely one
)


class ClassMapping(nn.Module):
    """Logits [B, E] as logits [B, C]: of several classes that become one the probabilities add up, those of classes
    that become none are shared out among the rest.

    Args:
        places: for each of the C classes, the places of theirs that become it; none where they have no such class.
    """

    def __init__(self, source_indices: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._source_indices = [list(each) for each in source_indices]

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Shape [B, C]."""
        known = [logits_BE[:, each].logsumexp(dim=-1) for each in self._source_indices if each]
        least_B = torch.stack(known).min(dim=0).values - _UNKNOWN_CLASS_MARGIN
        columns = iter(known)
        return torch.stack([next(columns) if each else least_B for each in self._source_indices], dim=-1)


def load_external_teacher(spec: ExternalTeacherConfig, emotions: Sequence[str]) -> EmotionClassifier:
    """The teacher, in eval mode, with the experiment's classes.

    Raises:
        ConfigError: it cannot be loaded, or has none of the classes.
        StorageError: it is a checkpoint of this project and damaged.
    """
    network = (
        load_checkpoint(spec.checkpoint)[0].network if is_lakd_checkpoint(spec) else _load_transformers_model(spec)
    )
    theirs = [network.config.id2label[place] for place in range(network.config.num_labels)]
    ours = [spec.emotion_map.get(name, name) for name in theirs]
    places = [[place for place, name in enumerate(ours) if name == emotion] for emotion in emotions]
    unknown = sorted(spec.emotion_map.keys() - set(theirs))
    if unknown or not any(places):
        wrong = f"`emotion_map` renames {', '.join(unknown)}" if unknown else f"none is one of {', '.join(emotions)}"
        raise ConfigError(
            f"teacher {spec.name} has the classes {', '.join(theirs)}; {wrong}. Say with `emotions: {{theirs: ours}}` "
            "which of its classes are which."
        )
    network.classifier = nn.Sequential(network.classifier, ClassMapping(places))
    return EmotionClassifier(network).eval()


def is_lakd_checkpoint(spec: ExternalTeacherConfig) -> bool:
    """Whether it is a sealed checkpoint of this project."""
    return ("/" in spec.checkpoint) and storage.exists(storage.join(spec.checkpoint, storage.CHECKSUMS_FILE))


def _load_transformers_model(spec: ExternalTeacherConfig) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForAudioClassification  # seconds to load

    try:
        return AutoModelForAudioClassification.from_pretrained(
            spec.checkpoint, revision=spec.revision, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"cannot load teacher {spec.name} from {spec.checkpoint}: {error}. Expected a checkpoint of this project, "
            "a hub name (with network access or a filled cache) or a folder with config.json and model.safetensors. Of "
            "one that has pytorch_model.bin alone: lakd convert NAME FOLDER, and name the folder."
        ) from error
