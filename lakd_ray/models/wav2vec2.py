"""wav2vec2 and its relatives as backbones: a convolutional feature encoder, then a transformer with an attention mask.

transformers lets padding leak: the group norm of the first convolution averages over padded frames. Here its statistics
are taken over each utterance's own frames and the transformer gets an attention mask, so what comes out does not depend
on what else is in the batch. Weights and configuration stay transformers' own, unchanged.

Shape suffixes: B utterances, T samples, F frames (20 ms), H channels of the feature encoder, D hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lakd_ray.errors import ConfigError
from lakd_ray.models.backbone import Backbone
from lakd_ray.models.masking import capture_inputs, length_mask


class Wav2Vec2Backbone(Backbone):
    """See `Backbone`.

    Args:
        network: transformers' model, with or without a head.
    """

    uses_masked_pooling = True
    has_cacheable_features = True

    def __init__(self, network: Any) -> None:
        base = getattr(network, network.base_model_prefix, network)
        config = base.config
        super().__init__(
            base, hidden_size=config.hidden_size, num_layers=config.num_hidden_layers, feature_dim=config.conv_dim[-1]
        )

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """In order."""
        layers: nn.ModuleList = self._base_model.encoder.layers
        return layers

    @property
    def feature_encoder(self) -> nn.Module:
        """The convolutional part."""
        encoder: nn.Module = self._base_model.feature_extractor
        return encoder

    def count_frames(self, lengths_B: Tensor) -> Tensor:
        """One frame for 20 ms."""
        frames_B: Tensor = self._base_model._get_feat_extract_output_lengths(lengths_B)
        return frames_B.long()

    def extract_features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Zero mean and unit variance for each utterance, then the convolutions."""
        weight = next(self.feature_encoder.parameters())
        hidden_BHT = normalize_waveform(wave_BT.float(), lengths_B).to(weight.dtype).unsqueeze(1)
        config = self.config
        valid_B = lengths_B
        for layer, kernel, stride in zip(
            self._base_model.feature_extractor.conv_layers, config.conv_kernel, config.conv_stride, strict=True
        ):
            valid_B = (valid_B - kernel) // stride + 1
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                hidden_BHT = layer.activation(masked_group_norm(layer.conv(hidden_BHT), valid_B, norm))
            else:
                hidden_BHT = layer(hidden_BHT)
        return hidden_BHT.transpose(1, 2)

    def encode(self, features_BFH: Tensor, frames_B: Tensor, *, output_hidden_states: bool = False) -> list[Tensor]:
        """Projection, SpecAugment (in training), transformer."""
        mask_BF = length_mask(features_BFH.shape[1], frames_B)
        projected = self._base_model.feature_projection(features_BFH)
        hidden_BFD = projected[0] if isinstance(projected, tuple) else projected
        hidden_BFD = self._apply_spec_augment(hidden_BFD, mask_BF)
        with capture_inputs(self._base_model.encoder.layers if output_hidden_states else []) as before:
            last_BFD = self._base_model.encoder(hidden_BFD, attention_mask=mask_BF).last_hidden_state
        return [*before, last_BFD]

    def _apply_spec_augment(self, hidden_BFD: Tensor, mask_BF: Tensor) -> Tensor:
        """As transformers masks in training; no time is masked where a mask does not fit, which it raises at."""
        if not self._base_model.training:
            return hidden_BFD
        if hidden_BFD.shape[1] >= self.config.mask_time_length:
            masked_BFD: Tensor = self._base_model._mask_hidden_states(hidden_BFD, attention_mask=mask_BF)
            return masked_BFD
        if not self.config.mask_feature_prob:
            return hidden_BFD
        no_time_BF = torch.zeros_like(mask_BF)
        channels_BFD: Tensor = self._base_model._mask_hidden_states(hidden_BFD, no_time_BF, attention_mask=mask_BF)
        return channels_BFD


def normalize_waveform(wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Zero mean and unit variance over each utterance's own samples, zeros beyond, as wav2vec2's feature extractor."""
    own_BT = length_mask(wave_BT.shape[1], lengths_B)
    count_B1 = lengths_B.unsqueeze(1)
    mean_B1 = wave_BT.masked_fill(~own_BT, 0).sum(dim=1, keepdim=True) / count_B1
    centred_BT = (wave_BT - mean_B1).masked_fill(~own_BT, 0)
    variance_B1 = centred_BT.square().sum(dim=1, keepdim=True) / count_B1
    return centred_BT * torch.rsqrt(variance_B1 + 1e-7)


def masked_group_norm(hidden_BHT: Tensor, lengths_B: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group norm with one group a channel, its statistics over each utterance's first `valid_B` steps.

    Raises:
        ConfigError: the layer groups several channels.
    """
    if norm.num_groups != norm.num_channels:
        raise ConfigError(f"expected a group per channel, found {norm.num_groups} for {norm.num_channels} channels")
    if hidden_BHT.device.type == "cpu" and not torch.compiler.is_compiling():
        return _group_norm_per_utterance(hidden_BHT, lengths_B.tolist(), norm)
    mask_B1T = length_mask(hidden_BHT.shape[-1], lengths_B).unsqueeze(1).to(hidden_BHT.dtype)
    count_B11 = lengths_B.view(-1, 1, 1).to(hidden_BHT.dtype)
    mean_BH1 = (hidden_BHT * mask_B1T).sum(dim=-1, keepdim=True) / count_B11
    centred_BHT = (hidden_BHT - mean_BH1) * mask_B1T
    variance_BH1 = centred_BHT.square().sum(dim=-1, keepdim=True) / count_B11
    scale_BH1 = norm.weight.view(1, -1, 1) * torch.rsqrt(variance_BH1 + norm.eps)
    return centred_BHT * scale_BH1 + norm.bias.view(1, -1, 1)


def _group_norm_per_utterance(hidden_BHT: Tensor, lengths_B: list[int], norm: nn.GroupNorm) -> Tensor:
    """The same by torch's own kernel, one by one: this tensor is the network's largest, and a CPU is slow to
    pass over it eight times. A GPU would wait for the lengths, and a graph cannot know them."""

    def one(row: int, valid: int) -> Tensor:
        own_1HT = hidden_BHT[row : row + 1, :, :valid]
        # not its `forward`, which refuses a single step
        return torch.group_norm(own_1HT, norm.num_groups, norm.weight, norm.bias, norm.eps)

    steps = hidden_BHT.shape[-1]
    if all(valid == steps for valid in lengths_B):
        return torch.group_norm(hidden_BHT, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return torch.cat([nn.functional.pad(one(*each), (0, steps - each[1])) for each in enumerate(lengths_B)])
