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

    pools_own: bool
    """Whether transformers' plain head takes the mean over an utterance's own frames, or over all that there are."""

    worth_keeping: bool
    """Whether `features` costs more than to read it again, and has as many frames as `frames` says."""

    def __init__(self, base: Any, *, size: int, layers: int, channels: int) -> None:
        self._base = base
        self.config = base.config
        self.size, self.layers, self.channels = size, layers, channels

    @property
    def encoder(self) -> nn.Module:
        """All of it but the head."""
        encoder: nn.Module = self._base
        return encoder

    def recompute(self) -> None:
        """Keep only what enters each layer, and compute the rest again in backward: less memory, more time."""
        self._base.gradient_checkpointing_enable({"use_reentrant": False})

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
    def frames(self, lengths_B: Tensor) -> Tensor:
        """Number of frames of the hidden states that are a clip of so many samples' own, shape [B]."""

    @abstractmethod
    def features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The first step, shape [B, F, H], of waves in [-1, 1]; frames beyond an utterance's own are meaningless."""

    @abstractmethod
    def hidden(self, features_BFH: Tensor, frames_B: Tensor, *, every_layer: bool = False) -> list[Tensor]:
        """The transformer's output, shape [B, F, D]; with `every_layer` its input and that of each layer before it."""
