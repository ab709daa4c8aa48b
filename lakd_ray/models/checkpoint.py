"""Save and load networks as transformers checkpoint folders.

A checkpoint folder is what transformers writes (config.json, model.safetensors, preprocessor_config.json) plus
`lakd.json`: model id, classes, languages, training settings and the data that the model was trained on. It is the only
contract between training, search, export and serving, and `AutoModelForAudioClassification` loads it too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lakd_ray import labels, storage
from lakd_ray.data.provenance import Provenance
from lakd_ray.errors import CheckpointError
from lakd_ray.models import pretrained
from lakd_ray.models.backbone import backbone_class
from lakd_ray.models.classifier import EmotionClassifier
from lakd_ray.models.known_pretrained import known_provenance
from lakd_ray.models.outputs import LANGUAGE_AWARE_MODEL_TYPE
from lakd_ray.models.progress_bars import hide_progress_bars

METADATA_FILE = "lakd.json"

_OTHER_CLASSES_REMEDY = (
    f"{labels.CLASS_REMEDY}. `distill.external_teachers` maps the classes of a teacher with other ones"
)


@dataclass(frozen=True)
class CheckpointMetadata:
    """Describe everything about a checkpoint except its weights."""

    model_id: str
    emotions: tuple[str, ...]
    languages: tuple[str, ...]
    provenance: Provenance
    training: dict[str, Any]
    """The settings of the training run, and the dev metrics that selected the epoch."""

    def class_indices(self, emotions: Sequence[str], *, remedy: str = _OTHER_CLASSES_REMEDY) -> list[int]:
        """Return the position in the logits of each of these classes, which are the checkpoint's in any order.

        Raises:
            DataError: the checkpoint has other classes; the message has both lists and the remedy.
        """
        context = f"the checkpoint of {self.model_id}"
        return labels.class_indices(self.emotions, emotions, context=context, remedy=remedy)

    def check_classes(self, network_classes: Sequence[str], *, context: str) -> None:
        """Check that the network names the same classes in the same order, so that no logit gets a wrong name.

        Raises:
            CheckpointError: they differ.
        """
        if tuple(network_classes) != self.emotions:
            raise CheckpointError(
                f"{context}: the network has the {len(network_classes)} outputs {', '.join(network_classes)}, but "
                f"{METADATA_FILE} lists {len(self.emotions)} emotions, {', '.join(self.emotions)}: the files belong to "
                "different checkpoints"
            )

    @property
    def is_encoder_frozen(self) -> bool:
        """Whether the encoder was frozen in training; released metadata omit the recipe and state it explicitly."""
        recipe = self.training.get("run", {}).get("recipe", {})
        return bool(self.training.get("frozen", recipe.get("model", {}).get("freeze_encoder", False)))

    @property
    def calibration_temperature(self) -> float:
        """The temperature that divides the logits before the softmax, fitted on dev; 1 if it was not fitted."""
        return float(self.training.get("dev", {}).get("calibration_temperature", 1.0))

    @property
    def corpora(self) -> tuple[str, ...]:
        """Names of the corpora in the training data; released metadata list them next to the hashes of speakers."""
        names = {speaker.partition(":")[0] for speaker in self.provenance.trained_on.speakers if ":" in speaker}
        return tuple(sorted(names | set(self.training.get("corpora", ()))))

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the public datasets that it, its teachers or its initial weights were trained on."""
        names = {name.partition(":")[0] for name in self.provenance.trained_on.datasets if "$" not in name}
        return tuple(sorted(names | set(self.training.get("datasets", ()))))

    def to_json(self) -> dict[str, Any]:
        """Return the metadata as plain JSON types."""
        return {**vars(self), "provenance": self.provenance.to_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "CheckpointMetadata":
        """Build the metadata from the output of `to_json`.

        Version 0.1 did not record what the initial weights were trained on: such a checkpoint counts as undisclosed,
        unless its weights were random at the start or those of a known model.
        """
        provenance = Provenance.from_json(content["provenance"])
        if "undisclosed_models" not in content["provenance"]:
            model = content["training"].get("run", {}).get("recipe", {}).get("model", {})
            if model.get("config") is None:
                unknown = Provenance(undisclosed_models=frozenset({content["model_id"]}))
                provenance = provenance.inherit([known_provenance(model.get("pretrained", "")) or unknown])
        return cls(
            model_id=content["model_id"],
            emotions=tuple(content["emotions"]),
            languages=tuple(content["languages"]),
            provenance=provenance,
            training=content["training"],
        )


def write_checkpoint(
    folder: Path, network: Any, metadata: CheckpointMetadata, *, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write a checkpoint's files into an empty local folder.

    Args:
        network: the transformers network (`EmotionClassifier.network`).
        metadata: written to `lakd.json`.
        state_dict: weights to save instead of the network's own, for example gathered from several ranks.
    """
    with hide_progress_bars():
        network.save_pretrained(folder, state_dict=state_dict)
    _build_feature_extractor(network.config).save_pretrained(folder)
    (folder / METADATA_FILE).write_text(json.dumps(metadata.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")


def save_checkpoint(
    location: str,
    network: Any,
    metadata: CheckpointMetadata,
    *,
    scratch: Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint folder atomically to a local or remote location.

    Args:
        network, metadata, state_dict: see `write_checkpoint`.
        scratch: an empty local folder, where the files are written first.
    """
    write_checkpoint(scratch, network, metadata, state_dict=state_dict)
    storage.write_checksummed_folder(scratch, location)


def _build_feature_extractor(config: Any) -> Any:
    """Return the transformers feature extractor of a network; language-aware students take waves with any backbone."""
    if config.model_type == LANGUAGE_AWARE_MODEL_TYPE:
        return backbone_class(config.backbone["model_type"]).make_wave_extractor()
    return backbone_class(config.model_type).make_feature_extractor(config)


def load_checkpoint(location: str) -> tuple[EmotionClassifier, CheckpointMetadata]:
    """Load a checkpoint in eval mode, after verifying its checksums.

    Raises:
        StorageError: the folder is missing, incomplete or corrupted.
        CheckpointError: it is not a checkpoint of this project.
    """
    with storage.open_checksummed_folder(location) as folder:
        return load_local_checkpoint(folder)


def load_local_checkpoint(folder: Path) -> tuple[EmotionClassifier, CheckpointMetadata]:
    """Load a checkpoint in eval mode from a local folder whose checksums are already verified.

    Raises:
        CheckpointError: it is not a checkpoint of this project.
    """
    metadata = read_local_metadata(folder)
    try:
        network, _ = pretrained.load_network(folder)
    except pretrained.LOADING_ERRORS as error:
        raise CheckpointError(f"cannot load the checkpoint {folder}: {error}") from error
    model = EmotionClassifier(network, freeze_encoder=metadata.is_encoder_frozen).eval()
    metadata.check_classes(model.emotions, context=str(folder))
    return model, metadata


def read_metadata(location: str) -> CheckpointMetadata:
    """Read the metadata of a local or remote checkpoint folder, without its weights.

    Raises:
        StorageError: it cannot be read.
        CheckpointError: it has other entries than those of this project.
    """
    return _parse_metadata(storage.read_json(storage.join(location, METADATA_FILE)), location)


def read_local_metadata(folder: Path) -> CheckpointMetadata:
    """Read the metadata of a local checkpoint folder.

    Raises:
        CheckpointError: the folder has no metadata file.
    """
    file = folder / METADATA_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {METADATA_FILE}: expected a checkpoint folder written by this project")
    return _parse_metadata(storage.read_json(str(file)), str(folder))


def _parse_metadata(content: Any, location: str) -> CheckpointMetadata:
    try:
        return CheckpointMetadata.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{location}: {METADATA_FILE} is not the metadata of a checkpoint of this project ({error!r})"
        ) from error
