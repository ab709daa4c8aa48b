"""What this project needs of a transformers speech encoder, whatever its family: features, frames, hidden states.

Shape suffixes: B utterances, T samples, F frames (20 ms), H channels of the features, D hidden size.
"""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Backbone(ABC):
    """A speech encoder in two steps, so that the first one's output can be kept.

    Args:
        base: transformers' model without a head.

    Attributes:
        config: transformers' configuration.
        size: D, the hidden size.
        layers: transformer layers.
        channels: H, of what `features` makes.
    """

    uses_masked_pooling: bool
    """Whether transformers' plain head takes the mean over an utterance's own frames, or over all that there are."""

    has_cacheable_features: bool
    """Whether `features` costs more than to read it again, and has as many frames as `frames` says."""

    def __init__(self, base_model: Any, *, hidden_size: int, num_layers: int, feature_dim: int) -> None:
        self._base_model = base_model
        self.config = base_model.config
        self.hidden_size, self.num_layers, self.feature_dim = hidden_size, num_layers, feature_dim

    @property
    def encoder(self) -> nn.Module:
        """All of it but the head."""
        encoder: nn.Module = self._base_model
        return encoder

    def enable_gradient_checkpointing(self) -> None:
        """Keep only what enters each layer, and compute the rest again in backward: less memory, more time."""
        self._base_model.gradient_checkpointing_enable({"use_reentrant": False})

    def compile(self) -> None:
        """Compile the layers, which are one piece of code, for any number of utterances and frames."""
        for layer in self.transformer_layers:
            layer.compile(dynamic=True)

    @property
    @abstractmethod
    def feature_encoder(self) -> nn.Module:
        """The convolutions, which `freeze_feature_encoder` freezes."""

    @property
    @abstractmethod
    def transformer_layers(self) -> nn.ModuleList:
        """In order."""

    @abstractmethod
    def count_frames(self, lengths_B: Tensor) -> Tensor:
        """Number of frames of the hidden states that are a clip of so many samples' own, shape [B]."""

    @abstractmethod
    def extract_features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The first step, shape [B, F, H], of waves in [-1, 1]; frames beyond an utterance's own are meaningless."""

    @abstractmethod
    def encode(self, features_BFH: Tensor, frames_B: Tensor, *, output_hidden_states: bool = False) -> list[Tensor]:
        """The transformer's output, shape [B, F, D]; with `output_hidden_states` its input and that of each layer before it."""
