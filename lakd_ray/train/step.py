"""One forward pass and its loss, for any paradigm. No Ray, no DeepSpeed: runs wherever torch does.

Shape suffixes: B utterances, T samples, F frames, H channels of the feature encoder, K teachers, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lakd_ray.config import DistillLoss, LabelLoss
from lakd_ray.distill import Languages, distillation_loss, label_losses

Forward = Callable[[Tensor, Tensor], Tensor]  # (inputs, lengths_B) -> logits_BC
PLAIN = LabelLoss()


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs, on the model's device."""

    inputs: Tensor
    """Waves, shape [B, T], or cached features, shape [B, F, H]."""
    lengths_B: Tensor
    """Each utterance's number of samples, or of frames."""
    labels_B: Tensor
    languages: Sequence[str]
    teacher_logits_BKC: Tensor | None = None
    label_weights_B: Tensor | None = None
    """Weight of each utterance's class in the loss against the labels, all one if absent."""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """The batch on a device; cached features in the model's precision, waves as they are: it normalises them."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            inputs=self.inputs.to(device, dtype if self.inputs.ndim == 3 else None, non_blocking=True),
            lengths_B=self.lengths_B.to(device, non_blocking=True),
            labels_B=self.labels_B.to(device, non_blocking=True),
            teacher_logits_BKC=moved(self.teacher_logits_BKC),
            label_weights_B=moved(self.label_weights_B),
        )


@dataclass(frozen=True)
class Sums:
    """Sums over a batch's utterances; divide by a count of utterances to get means. Stay on the device."""

    loss: Tensor
    ce: Tensor
    kl: Tensor

    def detached(self) -> Tensor:
        """[loss, ce, kl] without gradient, shape [3]."""
        return torch.stack([self.loss.detach(), self.ce.detach(), self.kl.detach()]).double()


def losses(
    forward: Forward,
    batch: Batch,
    loss: DistillLoss | None,
    teacher_languages: Sequence[str | None] = (),
    label: LabelLoss = PLAIN,
) -> Sums:
    """The paradigm's loss, summed over the batch: against the labels alone without `loss`, distillation with it.

    Args:
        teacher_languages: language of each teacher, None for a multilingual one; K of them.
        label: the loss against the labels; the weights of classes come with the batch, as they go by all of train.

    Raises:
        ValueError: distillation without teacher logits, logits of the wrong shape, or class balance without weights.
    """
    if label.class_balance and batch.label_weights_B is None:
        raise ValueError(
            f"class balance {label.class_balance} needs the weights of the utterances' classes, found none"
        )
    logits_BC = forward(batch.inputs, batch.lengths_B).float()
    if loss is None:
        ce = _against_labels(logits_BC, batch, label)
        return Sums(ce, ce, torch.zeros_like(ce))
    if batch.teacher_logits_BKC is None:
        raise ValueError("distillation needs teacher logits [B, K, C], found none")
    parts = distillation_loss(
        logits_BC,
        batch.teacher_logits_BKC,
        batch.labels_B,
        temperature=loss.temperature,
        lam=loss.lam,
        weighting=loss.weighting,
        tau=loss.tau,
        languages=Languages(batch.languages, teacher_languages),
        reference_compat=loss.reference_compat,
        own_language=loss.own_language,
        confidence=loss.confidence,
        standardise=loss.standardise,
        label_weights_B=batch.label_weights_B,
        focal_gamma=label.focal_gamma,
        label_smoothing=label.label_smoothing,
    )
    return Sums(parts.total_B.sum(), parts.ce_B.sum(), parts.kl_B.sum())


def _against_labels(logits_BC: Tensor, batch: Batch, label: LabelLoss) -> Tensor:
    """Summed over the batch; by torch's own sum where that is all, which rounds in its own order."""
    if label == PLAIN:
        return F.cross_entropy(logits_BC, batch.labels_B, reduction="sum")
    return label_losses(
        logits_BC,
        batch.labels_B,
        weights_B=batch.label_weights_B,
        focal_gamma=label.focal_gamma,
        label_smoothing=label.label_smoothing,
    ).sum()
