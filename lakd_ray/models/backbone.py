"""The interface of a speech encoder (features, frames, hidden states), and the registry of encoder families.

To add a family: subclass `Backbone` in a module of its own, next to `wav2vec2.py` and `whisper.py`, and add the
`model_type` of its transformers configuration to `BACKBONES`. Its constructor takes the transformers model, with or
without a head. `tests/models/test_classifier.py` checks the property that matters: the output of an utterance does not
depend on the other utterances in the batch.

Shape suffixes: B utterances, T samples, F frames (20 ms), H channels of the features, D hidden size.
"""

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lakd_ray.errors import ConfigError

BACKBONES: dict[str, str] = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "unispeech-sat"), "lakd_ray.models.wav2vec2.Wav2Vec2Backbone"),
    "whisper": "lakd_ray.models.whisper.WhisperBackbone",
}
"""transformers' `model_type` -> dotted path of the backbone class, which is imported when it is needed."""


class Backbone(ABC):
    """A speech encoder in two steps, so that the output of the first step can be cached.

    Args:
        base_model: the transformers model without a head.
        hidden_size: D.
        num_layers: number of transformer layers.
        feature_dim: H, the last dimension of the output of `extract_features`.

    Attributes:
        config: the transformers configuration.
    """

    uses_masked_pooling: bool
    """Whether transformers' plain head averages over an utterance's own frames, or over all frames with padding."""

    has_cacheable_features: bool
    """Whether `extract_features` costs more than reading its output from a cache, and returns `count_frames` frames."""

    def __init__(self, base_model: Any, *, hidden_size: int, num_layers: int, feature_dim: int) -> None:
        self._base_model = base_model
        self.config = base_model.config
        self.hidden_size, self.num_layers, self.feature_dim = hidden_size, num_layers, feature_dim

    @property
    def encoder(self) -> nn.Module:
        """The model with all its layers except the head."""
        encoder: nn.Module = self._base_model
        return encoder

    def enable_gradient_checkpointing(self) -> None:
        """Store only the inputs of each layer and recompute the rest in backward: less memory, more time."""
        self._base_model.gradient_checkpointing_enable({"use_reentrant": False})

    def compile(self) -> None:
        """Compile each transformer layer (they share one graph) for any number of utterances and frames."""
        for layer in self.transformer_layers:
            layer.compile(dynamic=True)

    @property
    @abstractmethod
    def feature_encoder(self) -> nn.Module:
        """The convolutions, which `freeze_feature_encoder` freezes."""

    @property
    @abstractmethod
    def transformer_layers(self) -> nn.ModuleList:
        """The transformer layers, from the input to the output."""

    @abstractmethod
    def count_frames(self, lengths_B: Tensor) -> Tensor:
        """Return how many frames of the hidden states belong to clips of the given lengths in samples, shape [B]."""

    @abstractmethod
    def extract_features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Run the first step on waves in [-1, 1], shape [B, F, H]; frames beyond an utterance's own are meaningless."""

    @abstractmethod
    def encode(self, features_BFH: Tensor, frames_B: Tensor, *, output_hidden_states: bool = False) -> list[Tensor]:
        """Run the transformer on the features.

        Returns:
            Its output, shape [B, F, D]; with `output_hidden_states` the transformer's input and the output of each
            earlier layer come before it in the list.
        """


def make_backbone(network: Any) -> Backbone:
    """Return the backbone of a transformers model, with or without a head.

    Raises:
        ConfigError: its family is not registered in `BACKBONES`, or its head is not supported.
    """
    model_type = network.config.model_type
    if model_type not in BACKBONES:
        raise ConfigError(f"model_type {model_type!r} is not supported: expected one of {', '.join(BACKBONES)}")
    if getattr(network.config, "use_weighted_layer_sum", False):
        raise ConfigError(
            "`use_weighted_layer_sum` is a head that is not supported: set it to false, or use a language-aware "
            "student, which weights the layers by the language"
        )
    module, _, name = BACKBONES[model_type].rpartition(".")
    backbone: Backbone = getattr(import_module(module), name)(network)
    return backbone
