"""Build very small real models: transformers' own classes with a few thousand weights."""

from pathlib import Path
from typing import Any

from lakd_ray.config import LanguageAwareHeadConfig, ModelConfig
from lakd_ray.data.provenance import DataExposure, Provenance
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import CheckpointMetadata, EmotionClassifier, build_model, save_checkpoint

ARCHITECTURE: dict[str, Any] = {
    "model_type": "wav2vec2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 8, 4],
    "conv_stride": [5, 8, 8],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}
NETWORK = (
    "{model_type: wav2vec2, conv_dim: [16, 16, 16, 16, 16, 16, 16], hidden_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, intermediate_size: 64, num_conv_pos_embeddings: 16, num_conv_pos_embedding_groups: 4, "
    "classifier_proj_size: 32}"
)
"""`model.config` for an experiment file; a frame is 20 ms, as in published models."""
WHISPER: dict[str, Any] = {
    "model_type": "whisper", "d_model": 16, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 16, "vocab_size": 50, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "num_mel_bins": 80,
    "max_source_positions": 50, "classifier_proj_size": 8, "dropout": 0.3,
}  # fmt: skip
DROPOUTS = ("hidden", "attention", "activation", "feat_proj", "final")
DETERMINISTIC: dict[str, Any] = {f"{name}_dropout": 0.0 for name in DROPOUTS} | {"mask_time_prob": 0.0}
"""Settings without dropout and SpecAugment, so that a training step is a deterministic function of its batch."""


def config(*, aware: LanguageAwareHeadConfig | None = None, **changes: Any) -> ModelConfig:
    return ModelConfig(config=ARCHITECTURE | changes, freeze_feature_encoder=False, language_aware=aware)


def model(seed: int = 0, **changes: Any) -> EmotionClassifier:
    """Build a model with random weights, in training mode."""
    return build_model(config(**changes), PAPER_EMOTIONS, seed=seed)


AWARE = LanguageAwareHeadConfig(embedding_size=8, attention_size=8, projection_size=16)
LANGUAGES = ("en", "fi", "fr")


def aware(
    seed: int = 0, *, teachers: int = 3, head: LanguageAwareHeadConfig = AWARE, **changes: Any
) -> EmotionClassifier:
    """Build a language-aware student of three languages with random weights, in training mode."""
    return build_model(
        config(aware=head, **changes), PAPER_EMOTIONS, seed=seed, languages=LANGUAGES, num_teachers=teachers
    )


def card(languages: tuple[str, ...] = ("en", "de")) -> CheckpointMetadata:
    provenance = Provenance(
        DataExposure(frozenset({"c:one"}), frozenset({"0" * 64})), DataExposure(frozenset({"c:two"}))
    )
    return CheckpointMetadata("test/tiny", PAPER_EMOTIONS, languages, provenance, {"epoch": 3})


def checkpoint(folder: Path, *, languages: tuple[str, ...] = ("en", "de"), seed: int = 0, **changes: Any) -> str:
    """Write a checkpoint below a folder and return its location."""
    scratch = folder / "scratch"
    scratch.mkdir()
    save_checkpoint(str(folder / "tiny"), model(seed, **changes).network, card(languages), scratch=scratch)
    return str(folder / "tiny")
