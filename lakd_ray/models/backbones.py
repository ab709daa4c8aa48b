"""What this project needs of a transformers speech encoder, family by family: features, frames, hidden states.

transformers' wav2vec2 lets padding leak: the group norm of the first convolution averages over padded frames. Here its
statistics are taken over each utterance's own frames and the transformer gets an attention mask, so what comes out
does not depend on what else is in the batch. Weights and configuration stay transformers' own, unchanged.

Shape suffixes: B utterances, T samples, F frames (20 ms), H channels of the feature encoder, D hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lakd_ray.errors import ConfigError


class Backbone(Protocol):
    """A speech encoder in two steps, so that the first one's output can be kept."""

    size: int
    """D, the hidden size."""
    layers: int
    """Transformer layers."""

    @property
    def feature_encoder(self) -> nn.Module:
        """What `features` is computed by."""
        ...

    def frames(self, lengths_B: Tensor) -> Tensor:
        """Number of frames that `features` makes of so many samples, shape [B]."""
        ...

    def features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The first step, shape [B, F, H], of waves in [-1, 1]; frames beyond an utterance's own are meaningless."""
        ...

    def hidden(self, features_BFH: Tensor, frames_B: Tensor, *, every_layer: bool = False) -> list[Tensor]:
        """The transformer's output, shape [B, F, D]; with `every_layer` its input and that of each layer before it."""
        ...


class ConvolutionalBackbone:
    """wav2vec2 and its relatives: a convolutional feature encoder, then a transformer with an attention mask.

    Args:
        network: transformers' model, with or without a head.
    """

    def __init__(self, network: Any) -> None:
        base = self._base = getattr(network, network.base_model_prefix, network)
        self.size = int(base.config.hidden_size)
        self.layers = int(base.config.num_hidden_layers)

    @property
    def feature_encoder(self) -> nn.Module:
        """The convolutional part."""
        encoder: nn.Module = self._base.feature_extractor
        return encoder

    def frames(self, lengths_B: Tensor) -> Tensor:
        """One frame for 20 ms."""
        frames_B: Tensor = self._base._get_feat_extract_output_lengths(lengths_B)
        return frames_B.long()

    def features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Zero mean and unit variance for each utterance, then the convolutions."""
        weight = next(self.feature_encoder.parameters())
        hidden_BHT = normalised(wave_BT.float(), lengths_B).to(weight.dtype).unsqueeze(1)
        config = self._base.config
        valid_B = lengths_B
        for layer, kernel, stride in zip(
            self._base.feature_extractor.conv_layers, config.conv_kernel, config.conv_stride, strict=True
        ):
            valid_B = (valid_B - kernel) // stride + 1
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                hidden_BHT = layer.activation(masked_group_norm(layer.conv(hidden_BHT), valid_B, norm))
            else:
                hidden_BHT = layer(hidden_BHT)
        return hidden_BHT.transpose(1, 2)

    def hidden(self, features_BFH: Tensor, frames_B: Tensor, *, every_layer: bool = False) -> list[Tensor]:
        """Projection, SpecAugment (in training), transformer."""
        mask_BF = own_frames(features_BFH.shape[1], frames_B)
        projected = self._base.feature_projection(features_BFH)
        hidden_BFD = projected[0] if isinstance(projected, tuple) else projected
        hidden_BFD = self._base._mask_hidden_states(hidden_BFD, attention_mask=mask_BF)
        with _inputs_of(self._base.encoder.layers if every_layer else []) as before:
            last_BFD = self._base.encoder(hidden_BFD, attention_mask=mask_BF).last_hidden_state
        return [*before, last_BFD]


# Families whose layout is feature_extractor -> feature_projection -> encoder.
FAMILIES = dict.fromkeys(("wav2vec2", "hubert", "wavlm", "unispeech-sat"), ConvolutionalBackbone)


def backbone_of(network: Any) -> Backbone:
    """The backbone of a transformers model, with or without a head.

    Raises:
        ConfigError: its family is not known.
    """
    family = network.config.model_type
    if family not in FAMILIES:
        raise ConfigError(f"model_type {family!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[family](network)


@contextmanager
def _inputs_of(layers: Any) -> Iterator[list[Tensor]]:
    """What each of some layers is given while the block runs."""
    found: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: found.append(given[0])) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def own_frames(frames: int, frames_B: Tensor) -> Tensor:
    """Which frames are an utterance's own, shape [B, F]."""
    return torch.arange(frames, device=frames_B.device) < frames_B.unsqueeze(1)


def normalised(wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Zero mean and unit variance over each utterance's own samples, zeros beyond, as wav2vec2's feature extractor."""
    own_BT = own_frames(wave_BT.shape[1], lengths_B)
    count_B1 = lengths_B.unsqueeze(1)
    mean_B1 = wave_BT.masked_fill(~own_BT, 0).sum(dim=1, keepdim=True) / count_B1
    centred_BT = (wave_BT - mean_B1).masked_fill(~own_BT, 0)
    variance_B1 = centred_BT.square().sum(dim=1, keepdim=True) / count_B1
    return centred_BT * torch.rsqrt(variance_B1 + 1e-7)


def masked_group_norm(hidden_BHT: Tensor, valid_B: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group norm with one group a channel, its statistics over each utterance's first `valid_B` steps.

    Raises:
        ConfigError: the layer groups several channels.
    """
    if norm.num_groups != norm.num_channels:
        raise ConfigError(f"expected a group per channel, found {norm.num_groups} for {norm.num_channels} channels")
    mask_B1T = own_frames(hidden_BHT.shape[-1], valid_B).unsqueeze(1).to(hidden_BHT.dtype)
    count_B11 = valid_B.view(-1, 1, 1).to(hidden_BHT.dtype)
    mean_BH1 = (hidden_BHT * mask_B1T).sum(dim=-1, keepdim=True) / count_B11
    centred_BHT = (hidden_BHT - mean_BH1) * mask_B1T
    variance_BH1 = centred_BHT.square().sum(dim=-1, keepdim=True) / count_B11
    scale_BH1 = norm.weight.view(1, -1, 1) * torch.rsqrt(variance_BH1 + norm.eps)
    return centred_BHT * scale_BH1 + norm.bias.view(1, -1, 1)
