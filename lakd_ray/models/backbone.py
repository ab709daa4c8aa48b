"""The interface of a speech encoder (features, frames, hidden states), and the registry of encoder families.

To add a family:

1. Subclass `Backbone` in a new module, next to `wav2vec2.py` and `whisper.py`. Its constructor takes the transformers
   model, with or without a head. Define the class attributes and the abstract methods. Override `build_encoder` if
   transformers' `AutoModel` builds more than the encoder, and `make_feature_extractor` if the network does not take
   waves.
2. Add the `model_type` of its transformers configuration to `BACKBONES`.

`tests/models/test_classifier.py` checks the property that matters: the output of an utterance does not depend on the
other utterances in the batch.

Shape suffixes: B utterances, T samples, F frames (20 ms), H channels of the features, D hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.errors import ConfigError
from lakd_ray.models.spec_augment import Seed, SpecAugmentMasks

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

    frontend_config_keys: tuple[str, ...]
    """Keys of the transformers configuration on which the output of `extract_features` depends besides the weights."""

    normalizes_waves: bool = False
    """Whether `extract_features` normalizes each wave to zero mean and unit variance."""

    def __init__(self, base_model: Any, *, hidden_size: int, num_layers: int, feature_dim: int) -> None:
        self._base_model = base_model
        self.config = base_model.config
        self.hidden_size, self.num_layers, self.feature_dim = hidden_size, num_layers, feature_dim

    @classmethod
    def build_encoder(cls, config: Any) -> Any:
        """Build the transformers model without a head and with random weights from its configuration."""
        from transformers import AutoModel  # seconds to load

        return AutoModel.from_config(config, trust_remote_code=False)

    @classmethod
    def make_feature_extractor(cls, config: Any) -> Any:
        """Return the transformers feature extractor for networks with a plain head; here they take waves."""
        return cls.make_wave_extractor()

    @classmethod
    def make_wave_extractor(cls) -> Any:
        """Return a transformers feature extractor that returns waves, as networks with a language-aware head need."""
        from transformers import Wav2Vec2FeatureExtractor  # seconds to load

        return Wav2Vec2FeatureExtractor(
            sampling_rate=SAMPLE_RATE, do_normalize=cls.normalizes_waves, return_attention_mask=True
        )

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

    def plan_spec_augment(self, num_frames: Sequence[int], seeds: Sequence[Seed]) -> SpecAugmentMasks | None:
        """Draw the masks of SpecAugment for a training batch on the CPU; None if the network has none.

        Args:
            num_frames: each utterance's number of frames.
            seeds: one seed for each utterance.
        """
        return None

    @abstractmethod
    def extract_features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Run the first step on waves in [-1, 1], shape [B, F, H]; frames past the end of an utterance are padding."""

    @abstractmethod
    def encode(
        self,
        features_BFH: Tensor,
        num_frames_B: Tensor,
        *,
        output_hidden_states: bool = False,
        spec_augment: SpecAugmentMasks | None = None,
    ) -> list[Tensor]:
        """Run the transformer on the features.

        Args:
            features_BFH: the output of `extract_features`.
            num_frames_B: each utterance's number of frames.
            output_hidden_states: also return the hidden states before the output.
            spec_augment: in training, masks that `plan_spec_augment` returned for this batch.

        Returns:
            Its output, shape [B, F, D]; with `output_hidden_states` the transformer's input and the output of each
            earlier layer come before it in the list.
        """


def backbone_class(model_type: str) -> type[Backbone]:
    """Return the backbone class of an encoder family.

    Raises:
        ConfigError: the family is not registered in `BACKBONES`.
    """
    if model_type not in BACKBONES:
        raise ConfigError(f"model_type {model_type!r} is not supported: expected one of {', '.join(BACKBONES)}")
    module, _, name = BACKBONES[model_type].rpartition(".")
    family: type[Backbone] = getattr(import_module(module), name)
    return family


def make_backbone(network: Any) -> Backbone:
    """Return the backbone of a transformers model, with or without a head.

    Raises:
        ConfigError: its family is not registered in `BACKBONES`, or its head is not supported.
    """
    family: Callable[[Any], Backbone] = backbone_class(network.config.model_type)
    if getattr(network.config, "use_weighted_layer_sum", False):
        raise ConfigError(
            "`use_weighted_layer_sum` is a head that is not supported: set it to false, or use a language-aware "
            "student, which weights the layers by the language"
        )
    return family(network)
