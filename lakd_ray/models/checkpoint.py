"""Networks saved and loaded as transformers folders.

A checkpoint folder is what transformers writes (config.json, model.safetensors, preprocessor_config.json) plus
`lakd.json`: model id, classes, languages, how it was trained and what it has seen. It is the only contract between
training, search, export and serving, and loads with `AutoModelForAudioClassification` too.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.data.provenance import Provenance
from lakd_ray.errors import CheckpointError
from lakd_ray.models.classifier import EmotionClassifier

METADATA_FILE = "lakd.json"


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a checkpoint is, beside its weights."""

    model_id: str
    emotions: tuple[str, ...]
    languages: tuple[str, ...]
    provenance: Provenance
    training: dict[str, Any]
    """The run that made it, and how its epoch was chosen."""

    @property
    def is_encoder_frozen(self) -> bool:
        """Whether its encoder was not trained; a released card says so itself, as it leaves its recipe out."""
        recipe = self.training.get("run", {}).get("recipe", {})
        return bool(self.training.get("frozen", recipe.get("model", {}).get("freeze_encoder", False)))

    @property
    def calibration_temperature(self) -> float:
        """What its logits are divided by before the softmax, fitted on dev; 1 where none is known."""
        return float(self.training.get("dev", {}).get("calibration_temperature", 1.0))

    @property
    def corpora(self) -> tuple[str, ...]:
        """Names of the corpora that it was trained on; a released card names them beside the hashes of speakers."""
        named = {speaker.partition(":")[0] for speaker in self.provenance.trained_on.speakers if ":" in speaker}
        return tuple(sorted(named | set(self.training.get("corpora", ()))))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**vars(self), "provenance": self.provenance.to_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "CheckpointMetadata":
        """The inverse of `to_json`."""
        return cls(
            model_id=content["model_id"],
            emotions=tuple(content["emotions"]),
            languages=tuple(content["languages"]),
            provenance=Provenance.from_json(content["provenance"]),
            training=content["training"],
        )


def write_checkpoint(
    folder: Path, network: Any, metadata: CheckpointMetadata, *, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write a checkpoint's files into an empty local folder.

    Args:
        network: the transformers network (`EmotionClassifier.network`).
        state: weights to save instead of the network's own (gathered from several ranks, say).
    """
    network.save_pretrained(folder, state_dict=state_dict)
    _build_feature_extractor(network).save_pretrained(folder)
    (folder / METADATA_FILE).write_text(json.dumps(metadata.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")


def save_checkpoint(
    location: str,
    network: Any,
    metadata: CheckpointMetadata,
    *,
    scratch: Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint folder to a location, whole or not at all.

    Args:
        network, state: see `write`.
        scratch: an empty local folder to write in first.
    """
    write_checkpoint(scratch, network, metadata, state_dict=state_dict)
    storage.write_checksummed_folder(scratch, location)


def _build_feature_extractor(network: Any) -> Any:
    """What transformers is to prepare waves by."""
    from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor  # seconds to load

    backbone = getattr(network.config, "backbone", {})  # of a language-aware student, whose own forward takes waves
    if network.config.model_type == "whisper":
        seconds = network.config.max_source_positions // 50
        return WhisperFeatureExtractor(
            feature_size=network.config.num_mel_bins, sampling_rate=SAMPLE_RATE, chunk_length=max(1, seconds)
        )
    heard_as_is = backbone.get("model_type") == "whisper"  # a spectrogram shows loudness
    return Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE, do_normalize=not heard_as_is, return_attention_mask=True)


def load_checkpoint(location: str) -> tuple[EmotionClassifier, CheckpointMetadata]:
    """A verified checkpoint, in eval mode.

    Raises:
        StorageError: the folder is missing, incomplete or damaged.
        CheckpointError: it is not one of this project's checkpoints.
    """
    with storage.open_checksummed_folder(location) as folder:
        return load_local_checkpoint(folder)


def load_local_checkpoint(folder: Path) -> tuple[EmotionClassifier, CheckpointMetadata]:
    """The same from a local folder that was verified already.

    Raises:
        CheckpointError: it is not one of this project's checkpoints.
    """
    from transformers import AutoModelForAudioClassification  # seconds to load

    import lakd_ray.models.language_aware  # noqa: F401 -- registers it

    card = read_local_metadata(folder)
    network = AutoModelForAudioClassification.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    if network.config.num_labels != len(card.emotions):
        raise CheckpointError(f"{folder}: {network.config.num_labels} outputs for {len(card.emotions)} emotions")
    return EmotionClassifier(network, freeze_encoder=card.is_encoder_frozen).eval(), card


def read_metadata(location: str) -> CheckpointMetadata:
    """The card of a checkpoint folder anywhere, without its weights."""
    return CheckpointMetadata.from_json(storage.read_json(storage.join(location, METADATA_FILE)))


def read_local_metadata(folder: Path) -> CheckpointMetadata:
    """The card of a local checkpoint folder.

    Raises:
        CheckpointError: it has none.
    """
    file = folder / METADATA_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {METADATA_FILE}: expected a checkpoint folder written by this project")
    return CheckpointMetadata.from_json(json.loads(file.read_text(encoding="utf-8")))
