"""A transformers speech encoder with a classification head, run so that an utterance's answer is its own.

Weights and configuration stay transformers' own, unchanged; see `lakd_ray.models.backbones` for what differs.

Shape suffixes: B utterances, T samples, F frames (20 ms), H channels of the feature encoder, D hidden size, C classes.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from lakd_ray.models.backbones import make_backbone
from lakd_ray.models.masking import length_mask
from lakd_ray.models.outputs import IDENTIFY_LANGUAGE, ClassifierOutput

# What `features` depends on, beside weights.
_FRONTEND_CONFIG_KEYS: tuple[str, ...] = (
    "model_type",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "feat_extract_norm",
)
_FRONTEND_CONFIG_KEYS += ("feat_extract_activation", "num_mel_bins", "max_source_positions")
# What a whole encoder does not depend on: where it was read from, and the head.
_NON_ENCODER_KEYS = {"_name_or_path", "architectures", "id2label", "label2id"}


class EmotionClassifier(nn.Module):
    """An answer from waves, in two steps so that what the first one makes can be kept.

    The first step is the feature encoder; of a network whose encoder is frozen it is the whole encoder and the mean
    over frames, one vector for each utterance.

    Args:
        network: a transformers `...ForSequenceClassification` of one of `lakd_ray.models.backbones.BACKBONE_CLASSES`, or a
            language-aware student.
        frozen: the encoder is not trained: it stays in eval mode and gets no gradient.

    Raises:
        ConfigError: the network is of another family.
    """

    def __init__(self, network: Any, *, freeze_encoder: bool = False) -> None:
        super().__init__()
        self.network = network
        self.languages: tuple[str, ...] = tuple(getattr(network.config, "languages", ()))
        """Languages that the head knows apart; none if it does not look at them."""
        self.backbone = make_backbone(network.encoder if self.languages else network)
        self.freeze_encoder = freeze_encoder
        self.source_layer_indices: tuple[int, ...] | None = None
        """Places that its layers had in the network they were chosen from; None if it has all of them."""
        if freeze_encoder:
            self.backbone.encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """As torch's, but for a frozen encoder: its dropout and SpecAugment stay off."""
        super().train(mode)
        if self.freeze_encoder:
            self.backbone.encoder.eval()
        return self

    @property
    def frontend(self) -> nn.Module:
        """What `features` is computed by."""
        return self.backbone.encoder if self._pools_before_head else self.backbone.feature_encoder

    @cached_property
    def frontend_fingerprint(self) -> str:
        """Identifies it as it is now: the same weights in the same layout make the same features."""
        content = hashlib.sha256()
        config = self.backbone.config.to_dict()
        names = sorted(config.keys() - _NON_ENCODER_KEYS) if self._pools_before_head else _FRONTEND_CONFIG_KEYS
        content.update(json.dumps({name: config.get(name) for name in names}, default=str).encode())
        for name, weight in sorted(self.frontend.state_dict().items()):
            content.update(name.encode())
            content.update(weight.float().cpu().numpy().tobytes())
        return content.hexdigest()[:16]

    @property
    def has_cacheable_features(self) -> bool:
        """Whether `features` may be cached."""
        return self._pools_before_head or self.backbone.has_cacheable_features

    @property
    def feature_dim(self) -> int:
        """H, of what `features` makes."""
        return self.backbone.hidden_size if self._pools_before_head else self.backbone.feature_dim

    @property
    def _pools_before_head(self) -> bool:
        # The plain head is linear up to its mean over frames, so the mean may as well come first.
        return self.freeze_encoder and not self.languages

    def encode_languages(self, codes: Sequence[str | None]) -> Tensor:
        """What `forward` takes for languages, shape [B]. None is to be identified, one not learned is UNKNOWN."""
        return encode_languages(self.languages, codes)

    def count_frames(self, lengths_B: Tensor) -> Tensor:
        """Number of frames that `features` makes of so many samples, shape [B]."""
        return torch.ones_like(lengths_B) if self._pools_before_head else self.backbone.count_frames(lengths_B)

    def extract_features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The first step, shape [B, F, H]; frames beyond an utterance's own are meaningless."""
        if not self._pools_before_head:
            return self.backbone.extract_features(wave_BT, lengths_B)
        frames_B = self.backbone.count_frames(lengths_B)
        with torch.no_grad():
            (hidden_BFD,) = self.backbone.encode(self.backbone.extract_features(wave_BT, lengths_B), frames_B)
        return self._pool(hidden_BFD, frames_B).unsqueeze(1)

    def classify(self, features_BFH: Tensor, frames_B: Tensor, languages_B: Tensor | None = None) -> ClassifierOutput:
        """The second step: transformer and head; the plain head takes the mean over frames."""
        if self._pools_before_head:
            return ClassifierOutput(self.network.classifier(self.network.projector(features_BFH[:, 0])))
        if self.languages:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
                hidden = self.backbone.encode(features_BFH, frames_B, output_hidden_states=True)
            outputs: ClassifierOutput = self.network.head(hidden, frames_B, languages_B)
            return outputs
        (hidden_BFD,) = self.backbone.encode(features_BFH, frames_B)
        return ClassifierOutput(self.network.classifier(self._pool(self.network.projector(hidden_BFD), frames_B)))

    def _pool(self, hidden_BFD: Tensor, frames_B: Tensor) -> Tensor:
        """Over the frames that transformers' head takes, shape [B, D]."""
        if not self.backbone.uses_masked_pooling:
            return hidden_BFD.mean(dim=1)
        own_BF1 = length_mask(hidden_BFD.shape[1], frames_B).unsqueeze(-1)
        return (hidden_BFD * own_BF1).sum(dim=1) / frames_B.unsqueeze(1)

    def forward(self, inputs: Tensor, lengths_B: Tensor, languages_B: Tensor | None = None) -> ClassifierOutput:
        """Answer.

        Args:
            inputs: waves [B, T], 16 kHz, in [-1, 1], whatever lies beyond their lengths; or what `features` makes of
                them, [B, F, H].
            lengths_B: each utterance's number of samples, or of frames.
            languages_B: see `language_ids`; all are to be identified if None. A plain head does not look at it.
        """
        if inputs.ndim == 3:
            return self.classify(inputs, lengths_B, languages_B)
        return self.classify(self.extract_features(inputs, lengths_B), self.count_frames(lengths_B), languages_B)


def encode_languages(languages: Sequence[str], codes: Sequence[str | None]) -> Tensor:
    """Places of some languages among those that a network knows apart, see `EmotionClassifier.language_ids`."""
    known = {code: place for place, code in enumerate(languages)}
    return torch.tensor([IDENTIFY_LANGUAGE if code is None else known.get(code, len(known)) for code in codes])


def pad_batch(signals: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Waves [T] or features [F, H] of different lengths as one batch: (padded with zeros, lengths_B)."""
    lengths_B = torch.tensor([len(signal) for signal in signals])
    return nn.utils.rnn.pad_sequence(signals, batch_first=True), lengths_B
