"""The distillation loss: cross-entropy against the labels and KL divergence against weighted teachers.

    soft_k = softmax(z_k / T)      logq = log_softmax(z_s / T)      KL_k = KL(soft_k || q) T^2
    total  = (1 - lam) CE(z_s, y) + lam mean_i sum_k w_ik KL_ik

Shape suffixes: B utterances, K teachers, C classes.

Source: Bijoy et al., Interspeech 2025 (arXiv 2506.08717). `reference_compat` computes the KL as that paper's published
code does, as a mean over B*C, hence C times smaller, with one set of weights for the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lakd_ray.distill.weightings import Languages, teacher_weights


@dataclass(frozen=True)
class DistillationLoss:
    """The parts of the loss, each a mean over the batch.

    Attributes:
        total: what is minimised, scalar.
        ce: cross-entropy, scalar.
        kl: weighted sum of the teachers' divergences, scalar.
        weights_BK: the teachers' weights, detached; rows sum to one.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    weights_BK: Tensor


@dataclass(frozen=True)
class UtteranceLosses:
    """As `DistillationLoss`, one value per utterance: for sums that are divided by a global count."""

    total_B: Tensor
    ce_B: Tensor
    kl_B: Tensor
    weights_BK: Tensor


def kl_divergence(student_logits_BC: Tensor, teacher_logits_BKC: Tensor, temperature: float) -> Tensor:
    """KL(softmax(z_k / T) || softmax(z_s / T)) T^2 for every utterance and teacher, shape [B, K]."""
    logq_BC = F.log_softmax(student_logits_BC / temperature, dim=-1)
    logp_BKC = F.log_softmax(teacher_logits_BKC / temperature, dim=-1)
    return (logp_BKC.exp() * (logp_BKC - logq_BC.unsqueeze(1))).sum(dim=-1) * temperature**2


def utterance_losses(
    student_logits_BC: Tensor,
    teacher_logits_BKC: Tensor,
    labels_B: Tensor,
    *,
    temperature: float,
    lam: float,
    weighting: str = "similarity",
    tau: float = 0.25,
    languages: Languages | None = None,
    reference_compat: bool = False,
) -> UtteranceLosses:
    """The loss of each utterance; arguments as in `distillation_loss`.

    Raises:
        ValueError: shapes do not fit, a number is out of range, or the weighting needs languages and has none.
    """
    _check(student_logits_BC, teacher_logits_BKC, labels_B, temperature=temperature, lam=lam, tau=tau)
    teacher_logits_BKC = teacher_logits_BKC.detach()
    weights_BK = teacher_weights(
        "similarity" if reference_compat else weighting,
        student_logits_BC.detach(),
        teacher_logits_BKC,
        tau=tau,
        languages=languages,
        per_batch=reference_compat,
    )
    ce_B = F.cross_entropy(student_logits_BC, labels_B, reduction="none")
    kl_B = (weights_BK * kl_divergence(student_logits_BC, teacher_logits_BKC, temperature)).sum(dim=-1)
    if reference_compat:
        kl_B = kl_B / student_logits_BC.shape[-1]
    return UtteranceLosses((1 - lam) * ce_B + lam * kl_B, ce_B, kl_B, weights_BK)


def distillation_loss(
    student_logits_BC: Tensor,
    teacher_logits_BKC: Tensor,
    labels_B: Tensor,
    *,
    temperature: float,
    lam: float,
    weighting: str = "similarity",
    tau: float = 0.25,
    languages: Languages | None = None,
    reference_compat: bool = False,
) -> DistillationLoss:
    """The whole of the method in one call.

    Args:
        student_logits_BC: student's logits, shape [B, C].
        teacher_logits_BKC: teachers' logits, shape [B, K, C].
        labels_B: class indices, shape [B].
        temperature: softens both distributions, > 0.
        lam: share of the distillation term, in [0, 1].
        weighting: a name in `lakd_ray.distill.WEIGHTINGS`.
        tau: temperature of the softmax over teacher similarities, > 0.
        languages: for weighting `language`, the utterances' and the teachers' languages.
        reference_compat: KL and weights exactly as the reference code computes them (ignores `weighting`).

    Raises:
        ValueError: shapes do not fit, a number is out of range, or the weighting needs languages and has none.
    """
    parts = utterance_losses(
        student_logits_BC,
        teacher_logits_BKC,
        labels_B,
        temperature=temperature,
        lam=lam,
        weighting=weighting,
        tau=tau,
        languages=languages,
        reference_compat=reference_compat,
    )
    return DistillationLoss(parts.total_B.mean(), parts.ce_B.mean(), parts.kl_B.mean(), parts.weights_BK)


def _check(student: Tensor, teachers: Tensor, labels: Tensor, *, temperature: float, lam: float, tau: float) -> None:
    shapes: Sequence[tuple[int, ...]] = [tuple(tensor.shape) for tensor in (student, teachers, labels)]
    batch, classes = student.shape[0], student.shape[-1]
    if student.dim() != 2 or teachers.dim() != 3 or (teachers.shape[0], teachers.shape[2]) != (batch, classes):
        raise ValueError(f"expected logits [B, C] and [B, K, C], found {shapes[0]} and {shapes[1]}")
    if not teachers.shape[1]:
        raise ValueError(f"expected at least one teacher, found teacher logits {shapes[1]}")
    if shapes[2] != (batch,):
        raise ValueError(f"expected labels [B] = [{batch}], found {shapes[2]}")
    if not (temperature > 0 and tau > 0 and 0 <= lam <= 1):
        raise ValueError(
            f"expected temperature > 0, tau > 0 and lam in [0, 1]; found temperature={temperature}, tau={tau}, "
            f"lam={lam}"
        )
