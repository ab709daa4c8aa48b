"""Compute the loss of distillation: cross-entropy against the labels and KL divergence against weighted teachers.

    soft_k = softmax(z_k / T)      logq = log_softmax(z_s / T)      KL_k = KL(soft_k || q) T^2
    total  = (1 - lam) CE(z_s, y) + lam mean_i sum_k w_ik KL_ik

Shape suffixes: B utterances, K teachers, C classes.

Source: Bijoy et al., Interspeech 2025 (arXiv 2506.08717). `reference_compat` computes the KL as that paper's published
code does, as a mean over B*C, hence C times smaller, with one set of weights for the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lakd_ray.config import DistillLossConfig, LabelLossConfig
from lakd_ray.distill.label_loss import label_losses
from lakd_ray.distill.teacher_weighting import WeightingInputs, teacher_weights
from lakd_ray.precision import upcast

# Added to the variance, so that equal logits, which have no variance, become zeros and not NaN.
_VARIANCE_EPS = 1e-12


@dataclass(frozen=True)
class DistillationLoss:
    """The loss terms of each utterance, and their batch means as properties.

    Distributed training sums the former and divides by the global count.

    Attributes:
        total_B: the objective, which is minimized, shape [B].
        ce_B: loss against the labels, shape [B].
        kl_B: weighted sum of the KL divergences from the teachers, shape [B].
        weights_BK: the teachers' weights, detached; rows sum to one.
    """

    total_B: Tensor
    ce_B: Tensor
    kl_B: Tensor
    weights_BK: Tensor

    @property
    def total(self) -> Tensor:
        """The mean of the objective over the batch, scalar."""
        return self.total_B.mean()

    @property
    def ce(self) -> Tensor:
        """The mean loss against the labels over the batch, scalar."""
        return self.ce_B.mean()

    @property
    def kl(self) -> Tensor:
        """The mean weighted KL divergence over the batch, scalar."""
        return self.kl_B.mean()


def distillation_loss(
    student_logits_BC: Tensor,
    teacher_logits_BKC: Tensor,
    labels_B: Tensor,
    settings: DistillLossConfig,
    *,
    label_loss: LabelLossConfig | None = None,
    label_weights_B: Tensor | None = None,
    same_language_BK: Tensor | None = None,
    attention_scores_BK: Tensor | None = None,
) -> DistillationLoss:
    """Compute the complete loss of a batch, at least in fp32; no gradient flows into the weights or the teachers.

    Args:
        student_logits_BC: logits of the student, shape [B, C].
        teacher_logits_BKC: logits of the teachers, shape [B, K, C].
        labels_B: class indices, shape [B].
        settings: the distillation term. With `reference_compat`, KL and weights are exactly those of the reference
            code.
        label_loss: the loss against the labels, see `label_losses`; None: plain cross-entropy.
        label_weights_B: the weight of each utterance's class, see `label_losses`.
        same_language_BK: for weighting `language`, see `match_languages`, shape [B, K].
        attention_scores_BK: for weighting `attention`, the scores of a learned attention, shape [B, K].

    Raises:
        ValueError: a shape is wrong, or an input of the weighting is missing.
    """
    _validate_shapes(student_logits_BC, teacher_logits_BKC, labels_B)
    student_logits_BC, teacher_logits_BKC = upcast(student_logits_BC), upcast(teacher_logits_BKC.detach())
    weights_BK = teacher_weights(
        WeightingInputs(
            student_logits_BC,
            teacher_logits_BKC,
            labels_B,
            settings,
            same_language_BK=same_language_BK,
            scores_BK=attention_scores_BK,
        )
    )
    ce_B = label_losses(student_logits_BC, labels_B, label_loss, weights_B=label_weights_B)
    compared = (student_logits_BC, teacher_logits_BKC)
    if settings.standardize_logits:
        compared = (standardize(student_logits_BC), standardize(teacher_logits_BKC))
    kl_B = (weights_BK * kl_divergence(*compared, settings.temperature)).sum(dim=-1)
    if settings.reference_compat:
        kl_B = kl_B / student_logits_BC.shape[-1]
    return DistillationLoss((1 - settings.lam) * ce_B + settings.lam * kl_B, ce_B, kl_B, weights_BK)


def kl_divergence(student_logits_BC: Tensor, teacher_logits_BKC: Tensor, temperature: float) -> Tensor:
    """Return KL(softmax(z_k / T) || softmax(z_s / T)) T^2 for every utterance and teacher, shape [B, K]."""
    logq_BC = F.log_softmax(student_logits_BC / temperature, dim=-1)
    logp_BKC = F.log_softmax(teacher_logits_BKC / temperature, dim=-1)
    return (logp_BKC.exp() * (logp_BKC - logq_BC.unsqueeze(1))).sum(dim=-1) * temperature**2


def standardize(logits: Tensor) -> Tensor:
    """Return logits [..., C] minus their mean over classes, divided by their standard deviation.

    Logit standardization of Sun et al. 2024 (arXiv 2403.01427): the student learns the order and the proportions of the
    teacher's logits, not their scale. The deviation is that of the C logits (divided by C); the published code uses the
    sample deviation (C - 1), which for four classes corresponds to a temperature 1.15 times as high.
    """
    return F.layer_norm(logits, logits.shape[-1:], eps=_VARIANCE_EPS)


def _validate_shapes(student: Tensor, teachers: Tensor, labels: Tensor) -> None:
    shapes: Sequence[tuple[int, ...]] = [tuple(tensor.shape) for tensor in (student, teachers, labels)]
    batch, classes = student.shape[0], student.shape[-1]
    if student.dim() != 2 or teachers.dim() != 3 or (teachers.shape[0], teachers.shape[2]) != (batch, classes):
        raise ValueError(f"expected logits [B, C] and [B, K, C], found {shapes[0]} and {shapes[1]}")
    if not teachers.shape[1]:
        raise ValueError(f"expected at least one teacher, found teacher logits {shapes[1]}")
    if shapes[2] != (batch,):
        raise ValueError(f"expected labels [B] = [{batch}], found {shapes[2]}")
