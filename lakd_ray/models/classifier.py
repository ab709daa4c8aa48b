"""A transformers speech encoder with its classification head, run so that an utterance's answer is its own.

Weights and configuration stay transformers' own, unchanged; see `lakd_ray.models.backbones` for what differs.

Shape suffixes: B utterances, T samples, F frames (20 ms), H channels of the feature encoder, D hidden size, C classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lakd_ray.models.backbones import backbone_of, own_frames


class EmotionClassifier(nn.Module):
    """Logits from waves, in two steps so that the feature encoder's output can be reused.

    Args:
        network: a transformers `...ForSequenceClassification` of one of `lakd_ray.models.backbones.FAMILIES`.

    Raises:
        ConfigError: the network is of another family.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.backbone = backbone_of(network)

    @property
    def feature_encoder(self) -> nn.Module:
        """What `features` is computed by."""
        return self.backbone.feature_encoder

    def frames(self, lengths_B: Tensor) -> Tensor:
        """Number of frames that the feature encoder makes of so many samples, shape [B]."""
        return self.backbone.frames(lengths_B)

    def features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The feature encoder, shape [B, F, H]; frames beyond an utterance's own are meaningless."""
        return self.backbone.features(wave_BT, lengths_B)

    def classify(self, features_BFH: Tensor, frames_B: Tensor) -> Tensor:
        """Transformer, mean over the utterance's frames, and head: logits, shape [B, C]."""
        (hidden_BFD,) = self.backbone.hidden(features_BFH, frames_B)
        mask_BF1 = own_frames(hidden_BFD.shape[1], frames_B).unsqueeze(-1)
        pooled_BD = (self.network.projector(hidden_BFD) * mask_BF1).sum(dim=1) / frames_B.unsqueeze(1)
        logits_BC: Tensor = self.network.classifier(pooled_BD)
        return logits_BC

    def forward(self, inputs: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits, shape [B, C].

        Args:
            inputs: waves [B, T], 16 kHz, in [-1, 1], whatever lies beyond their lengths; or what `features` makes of
                them, [B, F, H].
            lengths_B: each utterance's number of samples, or of frames.
        """
        if inputs.ndim == 3:
            return self.classify(inputs, lengths_B)
        return self.classify(self.features(inputs, lengths_B), self.frames(lengths_B))


def pad(signals: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Waves [T] or features [F, H] of different lengths as one batch: (padded with zeros, lengths_B)."""
    lengths_B = torch.tensor([len(signal) for signal in signals])
    return nn.utils.rnn.pad_sequence(signals, batch_first=True), lengths_B
