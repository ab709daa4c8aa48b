"""One forward pass and its loss, for any paradigm. No Ray, no DeepSpeed: runs wherever torch does.

Shape suffixes: B utterances, T samples, F frames, H channels of the feature encoder, K teachers, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lakd_ray.config import DistillLoss
from lakd_ray.distill import Languages, utterance_losses

Forward = Callable[[Tensor, Tensor], Tensor]  # (inputs, lengths_B) -> logits_BC


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

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """The batch on a device, inputs in the model's precision."""
        teachers = self.teacher_logits_BKC
        return Batch(
            self.inputs.to(device, dtype, non_blocking=True),
            self.lengths_B.to(device, non_blocking=True),
            self.labels_B.to(device, non_blocking=True),
            self.languages,
            None if teachers is None else teachers.to(device, non_blocking=True),
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
    forward: Forward, batch: Batch, loss: DistillLoss | None, teacher_languages: Sequence[str | None] = ()
) -> Sums:
    """The paradigm's loss, summed over the batch: cross-entropy alone without `loss`, distillation with it.

    Args:
        teacher_languages: language of each teacher, None for a multilingual one; K of them.

    Raises:
        ValueError: distillation without teacher logits, or logits of the wrong shape.
    """
    logits_BC = forward(batch.inputs, batch.lengths_B).float()
    if loss is None:
        ce = F.cross_entropy(logits_BC, batch.labels_B, reduction="sum")
        return Sums(ce, ce, torch.zeros_like(ce))
    if batch.teacher_logits_BKC is None:
        raise ValueError("distillation needs teacher logits [B, K, C], found none")
    parts = utterance_losses(
        logits_BC,
        batch.teacher_logits_BKC,
        batch.labels_B,
        temperature=loss.temperature,
        lam=loss.lam,
        weighting=loss.weighting,
        tau=loss.tau,
        languages=Languages(batch.languages, teacher_languages),
        reference_compat=loss.reference_compat,
    )
    return Sums(parts.total_B.sum(), parts.ce_B.sum(), parts.kl_B.sum())
