"""What this project needs of a transformers speech encoder, whatever its family: features, frames, hidden states.

Shape suffixes: B utterances, T samples, F frames (20 ms), H channels of the features, D hidden size.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from lakd_ray.errors import ConfigError
from lakd_ray.models.convolutional import ConvolutionalBackbone
from lakd_ray.models.whisper import WhisperBackbone


class Backbone(Protocol):
    """A speech encoder in two steps, so that the first one's output can be kept."""

    config: Any
    """transformers' configuration."""
    size: int
    """D, the hidden size."""
    layers: int
    """Transformer layers."""
    pools_own: bool
    """Whether transformers' plain head takes the mean over an utterance's own frames, or over all that there are."""

    @property
    def encoder(self) -> nn.Module:
        """All of it but the head."""
        ...

    @property
    def channels(self) -> int:
        """H, of what `features` makes."""
        ...

    @property
    def feature_encoder(self) -> nn.Module:
        """The convolutions, which `freeze_feature_encoder` freezes."""
        ...

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """In order."""
        ...

    def frames(self, lengths_B: Tensor) -> Tensor:
        """Number of frames of the hidden states that are a clip of so many samples' own, shape [B]."""
        ...

    def features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The first step, shape [B, F, H], of waves in [-1, 1]; frames beyond an utterance's own are meaningless."""
        ...

    def hidden(self, features_BFH: Tensor, frames_B: Tensor, *, every_layer: bool = False) -> list[Tensor]:
        """The transformer's output, shape [B, F, D]; with `every_layer` its input and that of each layer before it."""
        ...


FAMILIES: dict[str, Callable[[Any], Backbone]] = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "unispeech-sat"), ConvolutionalBackbone),
    "whisper": WhisperBackbone,
}


def backbone_of(network: Any) -> Backbone:
    """The backbone of a transformers model, with or without a head.

    Raises:
        ConfigError: its family is not known, or its head is another one.
    """
    family = network.config.model_type
    if family not in FAMILIES:
        raise ConfigError(f"model_type {family!r}: expected one of {', '.join(FAMILIES)}")
    if getattr(network.config, "use_weighted_layer_sum", False):
        raise ConfigError(
            "`use_weighted_layer_sum` is another head than the ones here: set it to false, or take a language-aware "
            "student, which weighs layers by the language"
        )
    return FAMILIES[family](network)
