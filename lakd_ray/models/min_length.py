"""The shortest recording that an encoder accepts, from its transformers configuration alone, without loading anything.

The convolutions of wav2vec2 and its relatives have no frame for shorter ones: 400 samples (25 ms) for published models.
"""

from collections.abc import Mapping
from typing import Any

from lakd_ray.config import ModelConfig
from lakd_ray.models import origin

# Defaults of transformers' Wav2Vec2Config, for configurations that leave them out.
_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


def min_samples(config: Mapping[str, Any]) -> int:
    """Return the minimum number of samples at 16 kHz; Whisper pads every recording to the same length.

    Args:
        config: content of a transformers configuration, with or without a language-aware head around the encoder.
    """
    config = config.get("backbone") or config
    if config.get("model_type") == "whisper":
        return 1
    layers = zip(config.get("conv_kernel") or _KERNELS, config.get("conv_stride") or _STRIDES, strict=True)
    samples = 1
    for kernel, stride in reversed(list(layers)):
        samples = (samples - 1) * int(stride) + int(kernel)
    return samples


def min_samples_of_model(model: ModelConfig) -> int:
    """Return `min_samples` of a configured model; that of published models if its configuration is not on this machine.

    Raises:
        StorageError: the configuration of a model in a folder or bucket cannot be read.
    """
    config = model.config
    if config is None:
        config = origin.read_model_file(str(model.pretrained), model.revision, "config.json")
    return min_samples(config or {})
