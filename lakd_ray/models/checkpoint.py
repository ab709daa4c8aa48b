"""Builds networks, and saves and loads them as transformers folders.

A checkpoint folder is what transformers writes (config.json, model.safetensors, preprocessor_config.json) plus
`lakd.json`: model id, classes, languages, how it was trained and what it has seen. It is the only contract between
training, search, export and serving, and loads with `AutoModelForAudioClassification` too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import Model
from lakd_ray.errors import CheckpointError, ConfigError
from lakd_ray.models.classifier import EmotionClassifier
from lakd_ray.provenance import Provenance

CARD = "lakd.json"


@dataclass(frozen=True)
class Card:
    """What a checkpoint is, beside its weights."""

    model_id: str
    emotions: tuple[str, ...]
    languages: tuple[str, ...]
    provenance: Provenance
    training: dict[str, Any]
    """The run that made it, and how its epoch was chosen."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**vars(self), "provenance": self.provenance.to_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Card":
        """The inverse of `to_json`."""
        return cls(
            model_id=content["model_id"],
            emotions=tuple(content["emotions"]),
            languages=tuple(content["languages"]),
            provenance=Provenance.from_json(content["provenance"]),
            training=content["training"],
        )


def build(model: Model, emotions: Sequence[str], *, seed: int) -> EmotionClassifier:
    """A network as configured: pretrained with a fresh head, or from a random start drawn from `seed`.

    Raises:
        ConfigError: the architecture is refused by transformers, or the pretrained model cannot be loaded.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForAudioClassification  # seconds to load

    labels: dict[str, Any] = {
        "num_labels": len(emotions),
        "id2label": dict(enumerate(emotions)),
        "label2id": {emotion: index for index, emotion in enumerate(emotions)},
        "layerdrop": 0.0,  # ranks would skip different layers and wait for each other for ever
    }
    torch.manual_seed(seed)
    try:
        if model.architecture is not None:
            network = AutoModelForAudioClassification.from_config(AutoConfig.for_model(**(model.architecture | labels)))
        else:
            network = AutoModelForAudioClassification.from_pretrained(
                model.pretrained,
                revision=model.revision,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a head for other classes is replaced by a fresh one
                **labels,
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, StrictDataclassError, SafetensorError) as error:
        if model.architecture is not None:
            raise ConfigError(f"`model.architecture` is refused by transformers: {error}") from error
        raise ConfigError(
            f"cannot load `model.pretrained: {model.pretrained}`: {error}. Expected a hub name (with network "
            "access or a filled cache) or a folder with config.json and model.safetensors."
        ) from error
    if model.freeze_feature_encoder:
        network.freeze_feature_encoder()
    return EmotionClassifier(network)


def save(location: str, network: Any, card: Card, *, scratch: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write a checkpoint folder to a location, whole or not at all.

    Args:
        network: the transformers network (`EmotionClassifier.network`).
        scratch: an empty local folder to write in first.
        state: weights to save instead of the network's own (gathered from several ranks, say).
    """
    from transformers import Wav2Vec2FeatureExtractor  # seconds to load

    network.save_pretrained(scratch, state_dict=state)
    Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE, do_normalize=True, return_attention_mask=True).save_pretrained(
        scratch
    )
    (scratch / CARD).write_text(json.dumps(card.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
    storage.publish_folder(scratch, location)


def load(location: str) -> tuple[EmotionClassifier, Card]:
    """A verified checkpoint, in eval mode.

    Raises:
        StorageError: the folder is missing, incomplete or damaged.
        CheckpointError: it is not one of this project's checkpoints.
    """
    from transformers import AutoModelForAudioClassification  # seconds to load

    with storage.fetched_folder(location) as folder:
        card = read_card(folder)
        network = AutoModelForAudioClassification.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    if network.config.num_labels != len(card.emotions):
        raise CheckpointError(f"{location}: {network.config.num_labels} outputs for {len(card.emotions)} emotions")
    return EmotionClassifier(network).eval(), card


def read_card_at(location: str) -> Card:
    """The card of a checkpoint folder anywhere, without its weights."""
    return Card.from_json(storage.read_json(storage.join(location, CARD)))


def read_card(folder: Path) -> Card:
    """The card of a local checkpoint folder.

    Raises:
        CheckpointError: it has none.
    """
    file = folder / CARD
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {CARD}: expected a checkpoint folder written by this project")
    return Card.from_json(json.loads(file.read_text(encoding="utf-8")))
