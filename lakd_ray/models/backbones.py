"""The families of speech encoders that there are backbones for."""

from collections.abc import Callable
from typing import Any

from lakd_ray.errors import ConfigError
from lakd_ray.models.backbone import Backbone
from lakd_ray.models.wav2vec2 import Wav2Vec2Backbone
from lakd_ray.models.whisper import WhisperBackbone

BACKBONE_CLASSES: dict[str, Callable[[Any], Backbone]] = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "unispeech-sat"), Wav2Vec2Backbone),
    "whisper": WhisperBackbone,
}


def make_backbone(network: Any) -> Backbone:
    """The backbone of a transformers model, with or without a head.

    Raises:
        ConfigError: its family is not known, or its head is another one.
    """
    family = network.config.model_type
    if family not in BACKBONE_CLASSES:
        raise ConfigError(f"model_type {family!r}: expected one of {', '.join(BACKBONE_CLASSES)}")
    if getattr(network.config, "use_weighted_layer_sum", False):
        raise ConfigError(
            "`use_weighted_layer_sum` is another head than the ones here: set it to false, or take a language-aware "
            "student, which weighs layers by the language"
        )
    return BACKBONE_CLASSES[family](network)
