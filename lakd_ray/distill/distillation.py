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

from lakd_ray.distill.label_loss import label_losses
from lakd_ray.distill.teacher_weighting import WeightingInputs, WeightingLanguages, teacher_weights

# Added to a variance, so that equal logits, which have none, become zeros and not NaN.
_VARIANCE_EPS = 1e-12


@dataclass(frozen=True)
class DistillationLoss:
    """The parts of the loss: of each utterance, for sums that are divided by a global count, and as means.

    Attributes:
        total_B: what is minimised, shape [B].
        ce_B: loss against the labels, shape [B].
        kl_B: weighted sum of the teachers' divergences, shape [B].
        weights_BK: the teachers' weights, detached; rows sum to one.
    """

    total_B: Tensor
    ce_B: Tensor
    kl_B: Tensor
    weights_BK: Tensor

    @property
    def total(self) -> Tensor:
        """Mean over the batch, scalar."""
        return self.total_B.mean()

    @property
    def ce(self) -> Tensor:
        """Mean over the batch, scalar."""
        return self.ce_B.mean()

    @property
    def kl(self) -> Tensor:
        """Mean over the batch, scalar."""
        return self.kl_B.mean()


def distillation_loss(
    student_logits_BC: Tensor,
    teacher_logits_BKC: Tensor,
    labels_B: Tensor,
    *,
    temperature: float,
    lam: float,
    weighting: str = "similarity",
    weighting_temperature: float = 0.25,
    languages: WeightingLanguages | None = None,
    reference_compat: bool = False,
    same_language_weight: float = 0.8,
    confidence_by: str = "label",
    attention_scores_BK: Tensor | None = None,
    standardize_logits: bool = False,
    label_weights_B: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> DistillationLoss:
    """The whole of the method in one call. No gradient flows into the weights or the teachers.

    Args:
        student_logits_BC: student's logits, shape [B, C].
        teacher_logits_BKC: teachers' logits, shape [B, K, C].
        labels_B: class indices, shape [B].
        temperature: softens both distributions, > 0.
        lam: share of the distillation term, in [0, 1].
        weighting: a name in `lakd_ray.distill.WEIGHTINGS`.
        weighting_temperature: temperature of the softmax over the teachers' scores, > 0.
        languages: for weighting `language`, the utterances' and the teachers' languages.
        reference_compat: KL and weights exactly as the reference code computes them (ignores `weighting`).
        same_language_weight: for weighting `language`, the share of the teachers of the utterance's language, in [0, 1].
        confidence: for weighting `confidence`, what it goes by: `label` or `entropy`.
        attention_scores_BK: for weighting `attention`, the scores of a learned attention, shape [B, K].
        standardize_logits: compare logits of zero mean and unit variance over classes, see `standardised`.
        label_weights_B, focal_gamma, label_smoothing: the loss against the labels, see `label_losses`.

    Raises:
        ValueError: shapes do not fit, a number is out of range, settings exclude each other, or the weighting has not
            what it needs.
    """
    _validate_inputs(
        student_logits_BC,
        teacher_logits_BKC,
        labels_B,
        temperature=temperature,
        lam=lam,
        weighting_temperature=weighting_temperature,
    )
    if reference_compat and standardize_logits:
        raise ValueError(
            "the reference code does not standardize_logits logits: set standardize_logits or reference_compat to false"
        )
    teacher_logits_BKC = teacher_logits_BKC.detach()
    weights_BK = teacher_weights(
        weighting,
        WeightingInputs(
            student_logits_BC,
            teacher_logits_BKC,
            labels_B,
            weighting_temperature=weighting_temperature,
            languages=languages,
            same_language_weight=same_language_weight,
            confidence_by=confidence_by,
            scores_BK=attention_scores_BK,
        ),
        per_batch=reference_compat,
    )
    ce_B = label_losses(
        student_logits_BC,
        labels_B,
        weights_B=label_weights_B,
        focal_gamma=focal_gamma,
        label_smoothing=label_smoothing,
    )
    compared = (student_logits_BC, teacher_logits_BKC)
    if standardize_logits:
        compared = (standardize(student_logits_BC), standardize(teacher_logits_BKC))
    kl_B = (weights_BK * kl_divergence(*compared, temperature)).sum(dim=-1)
    if reference_compat:
        kl_B = kl_B / student_logits_BC.shape[-1]
    return DistillationLoss((1 - lam) * ce_B + lam * kl_B, ce_B, kl_B, weights_BK)


def kl_divergence(student_logits_BC: Tensor, teacher_logits_BKC: Tensor, temperature: float) -> Tensor:
    """KL(softmax(z_k / T) || softmax(z_s / T)) T^2 for every utterance and teacher, shape [B, K]."""
    logq_BC = F.log_softmax(student_logits_BC / temperature, dim=-1)
    logp_BKC = F.log_softmax(teacher_logits_BKC / temperature, dim=-1)
    return (logp_BKC.exp() * (logp_BKC - logq_BC.unsqueeze(1))).sum(dim=-1) * temperature**2


def standardize(logits: Tensor) -> Tensor:
    """Logits [..., C] less their mean over classes, over their standard deviation; same shape.

    Logit standardisation of Sun et al. 2024 (arXiv 2403.01427): the student learns the teacher's order and proportions,
    not the size of its logits. The deviation is that of the C logits (divided by C); their published code takes the
    sample deviation (C - 1), which for four classes is as a temperature 1.15 times as high.
    """
    return F.layer_norm(logits, logits.shape[-1:], eps=_VARIANCE_EPS)


def _validate_inputs(
    student: Tensor, teachers: Tensor, labels: Tensor, *, temperature: float, lam: float, weighting_temperature: float
) -> None:
    shapes: Sequence[tuple[int, ...]] = [tuple(tensor.shape) for tensor in (student, teachers, labels)]
    batch, classes = student.shape[0], student.shape[-1]
    if student.dim() != 2 or teachers.dim() != 3 or (teachers.shape[0], teachers.shape[2]) != (batch, classes):
        raise ValueError(f"expected logits [B, C] and [B, K, C], found {shapes[0]} and {shapes[1]}")
    if not teachers.shape[1]:
        raise ValueError(f"expected at least one teacher, found teacher logits {shapes[1]}")
    if shapes[2] != (batch,):
        raise ValueError(f"expected labels [B] = [{batch}], found {shapes[2]}")
    if not (temperature > 0 and weighting_temperature > 0 and 0 <= lam <= 1):
        raise ValueError(
            f"expected temperature > 0, weighting_temperature > 0 and lam in [0, 1]; found temperature={temperature}, weighting_temperature={weighting_temperature}, "
            f"lam={lam}"
        )
