"""Compute the weight of each teacher for each utterance, from logits, labels and languages.

Shape suffixes: B utterances, K teachers, C classes. Every weighting returns weights [B, K] whose rows sum to one. The
weights of an utterance do not depend on the rest of its batch, except with `reference_compat`. tau in the formulas is
the setting `weighting_temperature`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lakd_ray.config import DistillLossConfig
from lakd_ray.distill.attention_loss import label_log_probabilities
from lakd_ray.precision import upcast


@dataclass(frozen=True)
class WeightingInputs:
    """The inputs that a weighting may use.

    Attributes:
        student_logits_BC: logits of the student, shape [B, C].
        teacher_logits_BKC: logits of the teachers, shape [B, K, C].
        labels_B: class indices, shape [B].
        settings: the weighting and its settings.
        same_language_BK: whether teacher and utterance have the same language, for `language`; see `match_languages`.
        scores_BK: scores of a learned attention, for `attention`.
    """

    student_logits_BC: Tensor
    teacher_logits_BKC: Tensor
    labels_B: Tensor
    settings: DistillLossConfig
    same_language_BK: Tensor | None = None
    scores_BK: Tensor | None = None


def uniform_weights(inputs: WeightingInputs) -> Tensor:
    """Return 1 / K for every teacher and utterance."""
    teachers = inputs.teacher_logits_BKC
    return torch.full(teachers.shape[:2], 1.0 / teachers.shape[1], dtype=teachers.dtype, device=teachers.device)


def similarity_weights(inputs: WeightingInputs) -> Tensor:
    """Return softmax_k(cos(z_s, z_k) / tau), the rule of the paper (arXiv 2506.08717), for each utterance."""
    cosine_BK = F.cosine_similarity(inputs.student_logits_BC.unsqueeze(1), inputs.teacher_logits_BKC, dim=-1)
    return F.softmax(cosine_BK / inputs.settings.weighting_temperature, dim=-1)


def similarity_centered_weights(inputs: WeightingInputs) -> Tensor:
    """Return the `similarity` weights of mean-centered logits: softmax ignores a shift, the cosine does not."""
    student_BC, teachers_BKC = inputs.student_logits_BC, inputs.teacher_logits_BKC
    return similarity_weights(
        replace(
            inputs,
            student_logits_BC=student_BC - student_BC.mean(dim=-1, keepdim=True),
            teacher_logits_BKC=teachers_BKC - teachers_BKC.mean(dim=-1, keepdim=True),
        )
    )


def match_languages(
    utterance_languages: Sequence[str], teacher_languages: Sequence[str | None], device: torch.device | None = None
) -> Tensor:
    """Return whether utterance and teacher have the same language, bool [B, K]; a teacher of several matches none.

    Build it on the CPU and copy it with the batch: a copy from a list to a GPU waits for the device.
    """
    match = [[code == teacher for teacher in teacher_languages] for code in utterance_languages]
    return torch.tensor(match, dtype=torch.bool, device=device)


def language_weights(inputs: WeightingInputs) -> Tensor:
    """Return weights for which the teachers of the utterance's language share `same_language_weight`.

    The other teachers share the remainder. Weights are uniform for an utterance without a teacher of its language, or
    with such teachers only.

    Raises:
        ValueError: the matches of languages are missing, or their shape does not match the logits.
    """
    match_BK, same_language_weight = inputs.same_language_BK, inputs.settings.same_language_weight
    teachers, shape = inputs.teacher_logits_BKC.shape[1], tuple(inputs.teacher_logits_BKC.shape[:2])
    found = None if match_BK is None else tuple(match_BK.shape)
    if match_BK is None or found != shape:
        raise ValueError(
            f"weighting `language` needs `same_language_BK` [B, K] = {shape} of `match_languages`, found {found}"
        )
    matches_B1 = match_BK.sum(dim=1, keepdim=True, dtype=inputs.teacher_logits_BKC.dtype)
    others_B1 = teachers - matches_B1
    weight_BK = torch.where(
        match_BK,
        same_language_weight / matches_B1.clamp(min=1),
        (1 - same_language_weight) / others_B1.clamp(min=1),
    )
    one_sided_B1 = (matches_B1 == 0) | (others_B1 == 0)
    return torch.where(one_sided_B1, torch.full_like(weight_BK, 1.0 / teachers), weight_BK)


def confidence_weights(inputs: WeightingInputs) -> Tensor:
    """Return softmax_k(c_k / tau), where c_k in [0, 1] is the confidence of teacher k.

    c_k is the probability of the label, or 1 - H(softmax(z_k)) / log C. The sources use other formulas: Zhang et al.
    2022 (arXiv 2201.00007) use the label and take (1 - softmax_k(CE_k)) / (K - 1), which gives no teacher more than
    1 / (K - 1) and is not defined for one teacher; Kwon et al., ICASSP 2020, use the entropy without the label. Here
    both are scores under the same softmax as in `similarity`, so that tau has the same meaning.
    """
    if inputs.settings.confidence_by == "label":
        score_BK = label_log_probabilities(inputs.teacher_logits_BKC, inputs.labels_B).exp()
    else:
        logp_BKC = F.log_softmax(inputs.teacher_logits_BKC, dim=-1)
        score_BK = 1 + (logp_BKC.exp() * logp_BKC).sum(dim=-1) / math.log(logp_BKC.shape[-1])
    return F.softmax(score_BK / inputs.settings.weighting_temperature, dim=-1)


def top1_weights(inputs: WeightingInputs) -> Tensor:
    """Return 1 for the teacher with the highest probability of the label, shared equally among tied teachers."""
    better_BK, _ = _count_better_and_tied(inputs)
    best_BK = (better_BK == 0).to(inputs.teacher_logits_BKC.dtype)
    return best_BK / best_BK.sum(dim=-1, keepdim=True)


def rank_weights(inputs: WeightingInputs) -> Tensor:
    """Return (K + 1 - r_k) / (1 + ... + K), where r_k is the rank of teacher k by its probability of the label.

    Tied teachers have their mean rank. These are the rank-sum weights of Stillwell et al. 1981, which is one of several
    rules; for three teachers they are 1/2, 1/3 and 1/6.
    """
    better_BK, equal_BK = _count_better_and_tied(inputs)
    teachers = inputs.teacher_logits_BKC.shape[1]
    rank_BK = better_BK + (equal_BK.to(inputs.teacher_logits_BKC.dtype) + 1) / 2
    return (teachers + 1 - rank_BK) * (2 / (teachers * (teachers + 1)))


def _count_better_and_tied(inputs: WeightingInputs) -> tuple[Tensor, Tensor]:
    """Count, for each teacher, those with a higher and with an equal probability of the label (itself included)."""
    logp_BK = label_log_probabilities(inputs.teacher_logits_BKC, inputs.labels_B)
    own_BK1, other_B1K = logp_BK.unsqueeze(2), logp_BK.unsqueeze(1)
    return (other_B1K > own_BK1).sum(dim=-1), (other_B1K == own_BK1).sum(dim=-1)


def attention_weights(inputs: WeightingInputs) -> Tensor:
    """Return softmax_k of learned scores; `mixture_losses` is the loss that trains them.

    Raises:
        ValueError: scores are missing, or their shape does not match the logits.
    """
    scores_BK, shape = inputs.scores_BK, tuple(inputs.teacher_logits_BKC.shape[:2])
    found = None if scores_BK is None else tuple(scores_BK.shape)
    if scores_BK is None or found != shape:
        raise ValueError(
            f"weighting `attention` needs the scores [B, K] = {shape} of a learned attention, found {found}"
        )
    return F.softmax(scores_BK, dim=-1)


WEIGHTINGS: dict[str, Callable[[WeightingInputs], Tensor]] = {
    "uniform": uniform_weights,
    "similarity": similarity_weights,
    "similarity-centered": similarity_centered_weights,
    "language": language_weights,
    "confidence": confidence_weights,
    "top1": top1_weights,
    "rank": rank_weights,
    "attention": attention_weights,
}


@torch.no_grad()
def teacher_weights(inputs: WeightingInputs) -> Tensor:
    """Return the teacher weights by the weighting of the settings, shape [B, K], at least in fp32, without gradient.

    With `reference_compat`, the cosine is averaged over the batch before the softmax, so that all utterances have the
    same weights, as in the reference code.

    Raises:
        ValueError: an input of the weighting is missing or has the wrong shape.
    """
    settings = inputs.settings
    inputs = replace(
        inputs,
        student_logits_BC=upcast(inputs.student_logits_BC),
        teacher_logits_BKC=upcast(inputs.teacher_logits_BKC),
        scores_BK=None if inputs.scores_BK is None else upcast(inputs.scores_BK),
    )
    if not settings.reference_compat:
        return WEIGHTINGS[settings.weighting](inputs)
    cosine_BK = F.cosine_similarity(inputs.student_logits_BC.unsqueeze(1), inputs.teacher_logits_BKC, dim=-1)
    weights_K = F.softmax(cosine_BK.mean(dim=0) / settings.weighting_temperature, dim=-1)
    return weights_K.expand_as(cosine_BK)
