"""Run a transformers speech encoder with a classification head, independently of the batch composition.

Weights and configuration are those of transformers, unchanged. The backbone modules document how their forward pass
differs from transformers'.

Shape suffixes: B utterances, T samples, F frames (20 ms), H channels of the feature encoder, D hidden size, C classes.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from lakd_ray.models.backbone import make_backbone
from lakd_ray.models.masking import length_mask
from lakd_ray.models.outputs import IDENTIFY_LANGUAGE, ClassifierOutput
from lakd_ray.models.spec_augment import Seed, SpecAugmentMasks
from lakd_ray.precision import upcast_dtype

# The encoder does not depend on these: the path it was loaded from, and the head.
_NON_ENCODER_KEYS = {"_name_or_path", "architectures", "id2label", "label2id"}


class EmotionClassifier(nn.Module):
    """Compute logits from waves in two steps, so that the output of the first step can be cached.

    The first step is the feature encoder. With a frozen encoder and a plain head, it is the complete encoder followed
    by the mean over frames, which gives one vector per utterance.

    Args:
        network: a transformers `...ForSequenceClassification` of a family in `lakd_ray.models.backbone.BACKBONES`, or
            a language-aware student.
        freeze_encoder: keep the encoder in eval mode and without gradients.

    Raises:
        ConfigError: the network's family is not supported.
    """

    def __init__(self, network: Any, *, freeze_encoder: bool = False) -> None:
        super().__init__()
        self.network = network
        self.languages: tuple[str, ...] = tuple(getattr(network.config, "languages", ()))
        """Languages that the head distinguishes; empty if it does not use the language."""
        self.backbone = make_backbone(network.encoder if self.languages else network)
        self.freeze_encoder = freeze_encoder
        self.source_layer_indices: tuple[int, ...] | None = None
        """Index of each remaining layer in the unpruned network; None if no layer was removed."""
        self.pretrained_head_note: str | None = None
        """A sentence on the classes that a pretrained head is used for; None if the head is new."""
        if freeze_encoder:
            self.backbone.encoder.requires_grad_(False).eval()

    @property
    def emotions(self) -> tuple[str, ...]:
        """The classes in the order of the logits, as the network's configuration names them."""
        config = self.network.config
        return tuple(config.id2label[index] for index in range(config.num_labels))

    def train(self, mode: bool = True) -> Self:
        """Set the mode as torch does, except that a frozen encoder keeps its dropout and SpecAugment off."""
        super().train(mode)
        if self.freeze_encoder:
            self.backbone.encoder.eval()
        return self

    @property
    def frontend(self) -> nn.Module:
        """The module that computes `extract_features`."""
        return self.backbone.encoder if self._pools_before_head else self.backbone.feature_encoder

    @cached_property
    def frontend_fingerprint(self) -> str:
        """Hash of the frontend's weights and configuration: equal fingerprints give equal features."""
        fingerprint = hashlib.sha256()
        config = self.backbone.config.to_dict()
        names: Sequence[str] = ("model_type", *self.backbone.frontend_config_keys)
        if self._pools_before_head:
            names = sorted(config.keys() - _NON_ENCODER_KEYS)
        fingerprint.update(json.dumps({name: config.get(name) for name in names}, default=str).encode())
        for name, weight in sorted(self.frontend.state_dict().items()):
            fingerprint.update(name.encode())
            fingerprint.update(weight.float().cpu().numpy().tobytes())
        return fingerprint.hexdigest()[:16]

    @property
    def has_cacheable_features(self) -> bool:
        """Whether caching the output of `extract_features` is possible and saves time."""
        return self._pools_before_head or self.backbone.has_cacheable_features

    @property
    def feature_dim(self) -> int:
        """H, the last dimension of the output of `extract_features`."""
        return self.backbone.hidden_size if self._pools_before_head else self.backbone.feature_dim

    @property
    def _pools_before_head(self) -> bool:
        # The plain head is linear up to its mean over frames, so taking the mean first gives the same result.
        return self.freeze_encoder and not self.languages

    def encode_languages(self, codes: Sequence[str | None]) -> Tensor:
        """Return the `languages_B` argument of `forward` for language codes: see the function `encode_languages`."""
        return encode_languages(self.languages, codes)

    def count_frames(self, lengths_B: Tensor) -> Tensor:
        """Return the number of frames that `extract_features` produces for the given numbers of samples, shape [B]."""
        return torch.ones_like(lengths_B) if self._pools_before_head else self.backbone.count_frames(lengths_B)

    def extract_features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Run the first step on waves, shape [B, F, H]; frames past the end of an utterance are padding."""
        if not self._pools_before_head:
            return self.backbone.extract_features(wave_BT, lengths_B)
        num_frames_B = self.backbone.count_frames(lengths_B)
        with torch.no_grad():
            (hidden_BFD,) = self.backbone.encode(self.backbone.extract_features(wave_BT, lengths_B), num_frames_B)
        return self._pool(hidden_BFD, num_frames_B).unsqueeze(1)

    def classify(
        self,
        features_BFH: Tensor,
        num_frames_B: Tensor,
        languages_B: Tensor | None = None,
        spec_augment: SpecAugmentMasks | None = None,
    ) -> ClassifierOutput:
        """Run the second step, transformer and head; the plain head takes the mean over frames."""
        if self._pools_before_head:
            return ClassifierOutput(self.network.classifier(self.network.projector(features_BFH[:, 0])))
        if self.languages:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
                hidden = self.backbone.encode(
                    features_BFH, num_frames_B, output_hidden_states=True, spec_augment=spec_augment
                )
            outputs: ClassifierOutput = self.network.head(hidden, num_frames_B, languages_B)
            return outputs
        (hidden_BFD,) = self.backbone.encode(features_BFH, num_frames_B, spec_augment=spec_augment)
        return ClassifierOutput(self.network.classifier(self._pool(self.network.projector(hidden_BFD), num_frames_B)))

    def _pool(self, hidden_BFD: Tensor, num_frames_B: Tensor) -> Tensor:
        """Average over the frames that transformers' head averages over, shape [B, D]."""
        dtype = upcast_dtype(hidden_BFD)
        if not self.backbone.uses_masked_pooling:
            return hidden_BFD.mean(dim=1, dtype=dtype).to(hidden_BFD.dtype)
        padding_BF1 = ~length_mask(hidden_BFD.shape[1], num_frames_B).unsqueeze(-1)
        total_BD = hidden_BFD.masked_fill(padding_BF1, 0).sum(dim=1, dtype=dtype)
        return (total_BD / num_frames_B.unsqueeze(1)).to(hidden_BFD.dtype)

    def plan_spec_augment(self, num_frames: Sequence[int], seeds: Sequence[Seed]) -> SpecAugmentMasks | None:
        """Draw the masks of a training batch, see `Backbone.plan_spec_augment`; None for a frozen encoder."""
        return None if self.freeze_encoder else self.backbone.plan_spec_augment(num_frames, seeds)

    def forward(
        self,
        inputs: Tensor,
        lengths_B: Tensor,
        languages_B: Tensor | None = None,
        spec_augment: SpecAugmentMasks | None = None,
    ) -> ClassifierOutput:
        """Compute the logits of waves or of cached features.

        Args:
            inputs: waves [B, T], 16 kHz, in [-1, 1], with any values beyond their lengths; or the output of
                `extract_features`, [B, F, H].
            lengths_B: each utterance's number of samples, or of frames.
            languages_B: see `encode_languages`; if None, the language of every utterance is identified. A plain head
                ignores it.
            spec_augment: in training, the masks that `plan_spec_augment` returned for this batch; None: no masks.
        """
        if inputs.ndim == 3:
            return self.classify(inputs, lengths_B, languages_B, spec_augment)
        features_BFH, num_frames_B = self.extract_features(inputs, lengths_B), self.count_frames(lengths_B)
        return self.classify(features_BFH, num_frames_B, languages_B, spec_augment)


def encode_languages(languages: Sequence[str], codes: Sequence[str | None]) -> Tensor:
    """Return the index of each language code, shape [B].

    Args:
        languages: the languages that the network distinguishes.
        codes: one code for each utterance. None becomes `IDENTIFY_LANGUAGE`, an unknown code the index of UNKNOWN.
    """
    index_of = {code: index for index, code in enumerate(languages)}
    return torch.tensor([IDENTIFY_LANGUAGE if code is None else index_of.get(code, len(index_of)) for code in codes])


def pad_batch(signals: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad waves [T] or features [F, H] with zeros to one batch; return (batch, lengths_B)."""
    lengths_B = torch.tensor([len(signal) for signal in signals])
    return nn.utils.rnn.pad_sequence(signals, batch_first=True), lengths_B
