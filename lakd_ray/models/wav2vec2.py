"""Backbone of the wav2vec2 family, which has a convolutional feature encoder and a transformer.

In transformers padding leaks: the group norm of the first convolution averages over padded frames. Here its statistics
are taken over each utterance's own frames and the transformer gets an attention mask, so the output does not depend on
the rest of the batch. Weights and configuration are those of
transformers, unchanged.

Shape suffixes: B utterances, T samples, F frames (20 ms), H channels of the feature encoder, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from lakd_ray.errors import ConfigError
from lakd_ray.models.backbone import Backbone
from lakd_ray.models.masking import length_mask
from lakd_ray.models.spec_augment import Seed, SpecAugmentMasks, plan_spec_augment
from lakd_ray.precision import upcast, upcast_dtype


class Wav2Vec2Backbone(Backbone):
    """Backbone of wav2vec2, HuBERT, WavLM and UniSpeech-SAT models.

    Args:
        network: the transformers model, with or without a head.
    """

    uses_masked_pooling = True
    has_cacheable_features = True
    frontend_config_keys = (
        "conv_dim",
        "conv_kernel",
        "conv_stride",
        "conv_bias",
        "feat_extract_norm",
        "feat_extract_activation",
    )
    normalizes_waves = True

    def __init__(self, network: Any) -> None:
        base = getattr(network, network.base_model_prefix, network)
        config = base.config
        super().__init__(
            base, hidden_size=config.hidden_size, num_layers=config.num_hidden_layers, feature_dim=config.conv_dim[-1]
        )

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """The transformer layers, from the input to the output."""
        layers: nn.ModuleList = self._base_model.encoder.layers
        return layers

    @property
    def feature_encoder(self) -> nn.Module:
        """The convolutions, without the feature projection."""
        encoder: nn.Module = self._base_model.feature_extractor
        return encoder

    def count_frames(self, lengths_B: Tensor) -> Tensor:
        """Return the number of frames (20 ms each) of the clips, shape [B]."""
        num_frames_B: Tensor = self._base_model._get_feat_extract_output_lengths(lengths_B)
        return num_frames_B.long()

    def extract_features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Normalize each utterance to zero mean and unit variance, then apply the convolutions."""
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

    def encode(
        self,
        features_BFH: Tensor,
        num_frames_B: Tensor,
        *,
        output_hidden_states: bool = False,
        spec_augment: SpecAugmentMasks | None = None,
    ) -> list[Tensor]:
        """Apply the feature projection, SpecAugment and the transformer.

        The loop over the layers is that of transformers' encoders, which read the mask in every forward pass to find
        out whether there is padding: a GPU would wait.
        """
        encoder, mask_BF = self._base_model.encoder, length_mask(features_BFH.shape[1], num_frames_B)
        projected = self._base_model.feature_projection(features_BFH)
        hidden_BFD = projected[0] if isinstance(projected, tuple) else projected
        if spec_augment is not None:
            hidden_BFD = spec_augment.apply(hidden_BFD, self._base_model.masked_spec_embed)
        hidden_BFD = hidden_BFD.masked_fill(~mask_BF.unsqueeze(-1), 0)
        hidden_BFD = hidden_BFD + encoder.pos_conv_embed(hidden_BFD)
        normalizes_last = self.config.do_stable_layer_norm
        hidden_BFD = encoder.dropout(hidden_BFD if normalizes_last else encoder.layer_norm(hidden_BFD))
        inputs, arguments = [], {"attention_mask": self._attention_mask(hidden_BFD, mask_BF, num_frames_B)}
        for layer in encoder.layers:
            inputs.append(hidden_BFD)
            output = layer(hidden_BFD, **arguments)
            if isinstance(output, tuple):  # WavLM's first layer computes the position bias that the next ones take
                hidden_BFD, arguments["position_bias"] = output
            else:
                hidden_BFD = output
        last_BFD = encoder.layer_norm(hidden_BFD) if normalizes_last else hidden_BFD
        return [*inputs, last_BFD] if output_hidden_states else [last_BFD]

    def _attention_mask(self, hidden_BFD: Tensor, mask_BF: Tensor, num_frames_B: Tensor) -> Tensor | None:
        """Return the mask as the layers need it; None without padding, which only the CPU finds out at no cost."""
        if self.config.model_type == "wavlm":
            return mask_BF
        on_host = num_frames_B.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_host and bool((num_frames_B >= mask_BF.shape[1]).all()):
            return None
        mask: Tensor | None = create_bidirectional_mask(
            self.config, hidden_BFD, mask_BF, allow_is_bidirectional_skip=False
        )
        return mask

    def plan_spec_augment(self, num_frames: Sequence[int], seeds: Sequence[Seed]) -> SpecAugmentMasks | None:
        """Draw the masks of a batch as the transformers configuration specifies."""
        return plan_spec_augment(self.config, num_frames, self.hidden_size, seeds)


def normalize_waveform(wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Normalize each utterance to zero mean and unit variance, zeros beyond, as wav2vec2's feature extractor does."""
    sample_mask_BT = length_mask(wave_BT.shape[1], lengths_B)
    count_B1 = lengths_B.unsqueeze(1)
    mean_B1 = wave_BT.masked_fill(~sample_mask_BT, 0).sum(dim=1, keepdim=True) / count_B1
    centered_BT = (wave_BT - mean_B1).masked_fill(~sample_mask_BT, 0)
    variance_B1 = centered_BT.square().sum(dim=1, keepdim=True) / count_B1
    return centered_BT * torch.rsqrt(variance_B1 + 1e-7)


def masked_group_norm(hidden_BHT: Tensor, lengths_B: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Apply a group norm with one group per channel, with statistics over each utterance's first `lengths_B` steps.

    Raises:
        ConfigError: a group of the layer has several channels.
    """
    if norm.num_groups != norm.num_channels:
        raise ConfigError(
            f"the group norm has {norm.num_groups} groups for {norm.num_channels} channels: expected one per channel"
        )
    if hidden_BHT.device.type == "cpu" and not torch.compiler.is_compiling():
        return _group_norm_per_utterance(hidden_BHT, lengths_B.tolist(), norm)
    return group_norm_with_mask(hidden_BHT, lengths_B, norm)


def group_norm_with_mask(hidden_BHT: Tensor, lengths_B: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Compute `masked_group_norm` without reading the lengths: for GPUs, which would wait, and for exported graphs.

    Statistics are fp32 for any input: squares of a second of audio overflow in fp16.
    """
    padding_B1T = ~length_mask(hidden_BHT.shape[-1], lengths_B).unsqueeze(1)
    count_B11 = lengths_B.view(-1, 1, 1)
    total_BH1 = hidden_BHT.masked_fill(padding_B1T, 0).sum(dim=-1, keepdim=True, dtype=upcast_dtype(hidden_BHT))
    centered_BHT = (hidden_BHT - total_BH1 / count_B11).masked_fill(padding_B1T, 0)
    variance_BH1 = centered_BHT.square().sum(dim=-1, keepdim=True) / count_B11
    scale_BH1 = upcast(norm.weight).view(1, -1, 1) * torch.rsqrt(variance_BH1 + norm.eps)
    return torch.addcmul(upcast(norm.bias).view(1, -1, 1), centered_BHT, scale_BH1).to(hidden_BHT.dtype)


def _group_norm_per_utterance(hidden_BHT: Tensor, lengths_B: list[int], norm: nn.GroupNorm) -> Tensor:
    """Apply the group norm to one utterance at a time with torch's own kernel, on the CPU only.

    This tensor is the network's largest, and the masked version passes over it eight times, which is slow on a CPU.
    """

    def normalize_utterance(row: int, valid: int) -> Tensor:
        valid_1HT = hidden_BHT[row : row + 1, :, :valid]
        # not `norm.forward`, which rejects a single step
        return torch.group_norm(valid_1HT, norm.num_groups, norm.weight, norm.bias, norm.eps)

    steps = hidden_BHT.shape[-1]
    if all(valid == steps for valid in lengths_B):
        return torch.group_norm(hidden_BHT, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return torch.cat(
        [nn.functional.pad(normalize_utterance(row, valid), (0, steps - valid)) for row, valid in enumerate(lengths_B)]
    )
