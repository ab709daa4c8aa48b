"""Compute the forward pass and the losses of a batch, for any paradigm, with torch alone.

Shape suffixes: B utterances, T samples, F frames, H channels of the feature encoder, K teachers, C classes,
L languages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lakd_ray.config import DistillLossConfig, LabelLossConfig
from lakd_ray.distill import distillation_loss, label_losses, match_languages, mixture_losses
from lakd_ray.models import ClassifierOutput
from lakd_ray.models.spec_augment import SpecAugmentMasks

# (inputs, lengths_B, languages_B, spec_augment) -> outputs
ForwardFn = Callable[[Tensor, Tensor, Tensor | None, SpecAugmentMasks | None], ClassifierOutput]
DEFAULT_LABEL_LOSS = LabelLossConfig()


@dataclass(frozen=True)
class TrainBatch:
    """The inputs and targets of one forward pass, and all that depends on the batch alone.

    It is made on the host, so that a step on a GPU never waits for values from it.
    """

    inputs: Tensor
    """Waves, shape [B, T], or cached features, shape [B, F, H]."""
    lengths_B: Tensor
    """Each utterance's number of samples, or of frames."""
    labels_B: Tensor
    languages: Sequence[str]
    """Code of each utterance's language."""
    teacher_logits_BKC: Tensor | None = None
    languages_B: Tensor | None = None
    """Indices of the languages, for a language-aware student."""
    label_weights_B: Tensor | None = None
    """Weight of each utterance's class in the label loss; all one if None."""
    same_language_BK: Tensor | None = None
    """For weighting `language`: see `match_languages`; computed from `languages` if None, on a GPU with a wait."""
    spec_augment: SpecAugmentMasks | None = None
    """Masks of a training batch; None: no masks."""

    def pin_memory(self) -> "TrainBatch":
        """Copy the batch to pinned memory, from which copies to a GPU are asynchronous."""
        return self._map(lambda value: value.pin_memory())

    def to(self, device: torch.device, dtype: torch.dtype) -> "TrainBatch":
        """Copy the batch to a device, cached features in the given precision; waves stay in fp32."""

        return self.cast(dtype)._map(lambda value: value.to(device, non_blocking=True))

    def cast(self, dtype: torch.dtype) -> "TrainBatch":
        """Convert cached features to the given precision; waves stay in fp32."""
        return replace(self, inputs=self.inputs.to(dtype)) if self.inputs.ndim == 3 else self

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        values = [getattr(self, entry.name) for entry in fields(self)]
        return [
            tensor
            for value in values
            for tensor in (value if isinstance(value, SpecAugmentMasks) else [value])
            if isinstance(tensor, Tensor)
        ]

    def _map(self, convert: Callable[[Any], Any]) -> "TrainBatch":
        """Convert each tensor, and the masks together."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return replace(
            self,
            **{name: convert(value) for name, value in values.items() if isinstance(value, Tensor | SpecAugmentMasks)},
        )


LOSS_NAMES = ("loss", "ce", "kl", "language", "attention")


@dataclass(frozen=True)
class LossSums:
    """Losses summed over the utterances of a batch, as tensors on the device; divide by a count to get means."""

    loss: Tensor
    """The objective, which is minimized."""
    ce: Tensor
    kl: Tensor
    language: Tensor
    """Cross-entropy of language identification, unweighted."""
    attention: Tensor
    """Loss of the learned teacher weights, unweighted."""

    def to_tensor(self) -> Tensor:
        """Return the losses in the order of `LOSS_NAMES` without gradient, shape [5]."""
        return torch.stack([getattr(self, name).detach() for name in LOSS_NAMES]).double()


@dataclass(frozen=True)
class Objective:
    """The settings of the loss that a run minimizes.

    Attributes:
        distill_loss: settings of distillation; None to train on the labels alone.
        teacher_languages: language of each of the K teachers, None for a multilingual one.
        label_loss: settings of the label loss; class weights come with the batch, as they depend on all of train.
        language_id_loss_weight: weight of language identification, for a language-aware student.
    """

    distill_loss: DistillLossConfig | None = None
    teacher_languages: Sequence[str | None] = ()
    label_loss: LabelLossConfig = DEFAULT_LABEL_LOSS
    language_id_loss_weight: float = 0.0

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The subset of `LOSS_NAMES` that this objective has; the others are zero."""
        has_attention = self.distill_loss is not None and self.distill_loss.weighting == "attention"
        absent = {"language": not self.language_id_loss_weight, "attention": not has_attention}
        return tuple(name for name in LOSS_NAMES if not absent.get(name))


def compute_losses(forward: ForwardFn, batch: TrainBatch, objective: Objective) -> LossSums:
    """Run the model on a batch and return its losses, summed over the batch.

    Raises:
        ValueError: teacher logits are missing or have the wrong shape, or class weights are missing.
    """
    label = objective.label_loss
    if label.class_balance and batch.label_weights_B is None:
        raise ValueError(
            f"class balance {label.class_balance} needs class weights, but the batch has no `label_weights_B`"
        )
    outputs = forward(batch.inputs, batch.lengths_B, batch.languages_B, batch.spec_augment)
    logits_BC = outputs.logits_BC.float()
    total, ce, kl = _paradigm_losses(logits_BC, outputs.teacher_scores_BK, batch, objective)
    language = _language_id_loss(outputs.language_logits_BL, batch)
    attention = _attention_loss(outputs.teacher_scores_BK, batch, objective.distill_loss)
    total = total + objective.language_id_loss_weight * language
    if objective.distill_loss is not None:
        total = total + objective.distill_loss.attention_loss_weight * attention
    return LossSums(total, ce, kl, language, attention)


def _paradigm_losses(
    logits_BC: Tensor, teacher_scores_BK: Tensor | None, batch: TrainBatch, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (total, ce, kl), each summed over the batch."""
    loss, label = objective.distill_loss, objective.label_loss
    if loss is None:
        ce = _label_loss(logits_BC, batch, label)
        return ce, ce, torch.zeros_like(ce)
    if batch.teacher_logits_BKC is None:
        raise ValueError("distillation needs teacher logits [B, K, C], but the batch has no `teacher_logits_BKC`")
    parts = distillation_loss(
        logits_BC,
        batch.teacher_logits_BKC,
        batch.labels_B,
        loss,
        label_loss=label,
        label_weights_B=batch.label_weights_B,
        same_language_BK=_same_language(batch, objective),
        attention_scores_BK=None if teacher_scores_BK is None else teacher_scores_BK.float(),
    )
    return parts.total_B.sum(), parts.ce_B.sum(), parts.kl_B.sum()


def _same_language(batch: TrainBatch, objective: Objective) -> Tensor | None:
    if objective.distill_loss is None or objective.distill_loss.weighting != "language":
        return None
    if batch.same_language_BK is not None:
        return batch.same_language_BK
    return match_languages(batch.languages, objective.teacher_languages, batch.labels_B.device)


def _language_id_loss(language_logits_BL: Tensor | None, batch: TrainBatch) -> Tensor:
    if language_logits_BL is None or batch.languages_B is None:
        return torch.zeros((), device=batch.labels_B.device)
    return F.cross_entropy(language_logits_BL.float(), batch.languages_B, reduction="sum")


def _attention_loss(
    teacher_scores_BK: Tensor | None, batch: TrainBatch, distill_loss: DistillLossConfig | None
) -> Tensor:
    if teacher_scores_BK is None or distill_loss is None or batch.teacher_logits_BKC is None:
        return torch.zeros((), device=batch.labels_B.device)
    return mixture_losses(
        teacher_scores_BK.float(), batch.teacher_logits_BKC, batch.labels_B, entropy_weight=distill_loss.entropy_weight
    ).sum()


def _label_loss(logits_BC: Tensor, batch: TrainBatch, label_loss: LabelLossConfig) -> Tensor:
    """Return the summed label loss; default settings use torch's own sum, on which the rounding depends."""
    if label_loss == DEFAULT_LABEL_LOSS:
        return F.cross_entropy(logits_BC, batch.labels_B, reduction="sum")
    return label_losses(logits_BC, batch.labels_B, label_loss, weights_B=batch.label_weights_B).sum()
