"""A transformers speech encoder with its classification head, run so that an utterance's answer is its own.

transformers' wav2vec2 lets padding leak: the group norm of the first convolution averages over padded frames. Here its
statistics are taken over each utterance's own frames and the transformer gets an attention mask, so the logits do not
depend on what else is in the batch. Weights and configuration stay transformers' own, unchanged.

Shape suffixes: B utterances, T samples, F frames (20 ms), H channels of the feature encoder, D hidden size, C classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lakd_ray.errors import ConfigError

# Families whose layout is feature_extractor -> feature_projection -> encoder -> projector -> classifier.
FAMILIES = ("wav2vec2", "hubert", "wavlm", "unispeech-sat")


class EmotionClassifier(nn.Module):
    """Logits from waves, in two steps so that the feature encoder's output can be reused.

    Args:
        network: a transformers `...ForSequenceClassification` of one of `FAMILIES`.

    Raises:
        ConfigError: the network is of another family.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        if network.config.model_type not in FAMILIES:
            raise ConfigError(f"model_type {network.config.model_type!r}: expected one of {', '.join(FAMILIES)}")
        self.network = network

    @property
    def _base(self) -> Any:
        return getattr(self.network, self.network.base_model_prefix)

    @property
    def feature_encoder(self) -> nn.Module:
        """The convolutional part."""
        encoder: nn.Module = self._base.feature_extractor
        return encoder

    def frames(self, lengths_B: Tensor) -> Tensor:
        """Number of frames that the feature encoder makes of so many samples, shape [B]."""
        frames_B: Tensor = self.network._get_feat_extract_output_lengths(lengths_B)
        return frames_B.long()

    def features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The convolutional feature encoder, shape [B, F, H]; frames beyond an utterance's own are meaningless."""
        hidden_BHT = wave_BT.unsqueeze(1)
        config = self.network.config
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

    def classify(self, features_BFH: Tensor, frames_B: Tensor) -> Tensor:
        """Transformer, mean over the utterance's frames, and head: logits, shape [B, C]."""
        frames = features_BFH.shape[1]
        mask_BF = torch.arange(frames, device=frames_B.device) < frames_B.unsqueeze(1)
        projected = self._base.feature_projection(features_BFH)
        hidden_BFD = projected[0] if isinstance(projected, tuple) else projected
        hidden_BFD = self._base._mask_hidden_states(hidden_BFD, attention_mask=mask_BF)
        hidden_BFD = self._base.encoder(hidden_BFD, attention_mask=mask_BF).last_hidden_state
        hidden_BFD = self.network.projector(hidden_BFD) * mask_BF.unsqueeze(-1)
        pooled_BD = hidden_BFD.sum(dim=1) / frames_B.unsqueeze(1)
        logits_BC: Tensor = self.network.classifier(pooled_BD)
        return logits_BC

    def forward(self, inputs: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits, shape [B, C].

        Args:
            inputs: waves [B, T], 16 kHz, zero mean and unit variance each, padded with zeros; or what `features` makes
                of them, [B, F, H].
            lengths_B: each utterance's number of samples, or of frames.
        """
        if inputs.ndim == 3:
            return self.classify(inputs, lengths_B)
        return self.classify(self.features(inputs, lengths_B), self.frames(lengths_B))


def masked_group_norm(hidden_BHT: Tensor, valid_B: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group norm with one group a channel, its statistics over each utterance's first `valid_B` steps.

    Raises:
        ConfigError: the layer groups several channels.
    """
    if norm.num_groups != norm.num_channels:
        raise ConfigError(f"expected a group per channel, found {norm.num_groups} for {norm.num_channels} channels")
    steps = hidden_BHT.shape[-1]
    mask_B1T = (torch.arange(steps, device=valid_B.device) < valid_B.unsqueeze(1)).unsqueeze(1).to(hidden_BHT.dtype)
    count_B11 = valid_B.view(-1, 1, 1).to(hidden_BHT.dtype)
    mean_BH1 = (hidden_BHT * mask_B1T).sum(dim=-1, keepdim=True) / count_B11
    centred_BHT = (hidden_BHT - mean_BH1) * mask_B1T
    variance_BH1 = centred_BHT.square().sum(dim=-1, keepdim=True) / count_B11
    scale_BH1 = norm.weight.view(1, -1, 1) * torch.rsqrt(variance_BH1 + norm.eps)
    return centred_BHT * scale_BH1 + norm.bias.view(1, -1, 1)


def pad(signals: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Waves [T] or features [F, H] of different lengths as one batch: (padded with zeros, lengths_B)."""
    lengths_B = torch.tensor([len(signal) for signal in signals])
    return nn.utils.rnn.pad_sequence(signals, batch_first=True), lengths_B
