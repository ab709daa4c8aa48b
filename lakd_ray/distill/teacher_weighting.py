"""How much each teacher counts for each utterance: pure functions of logits, labels and languages.

Shape suffixes: B utterances, K teachers, C classes. Every function returns weights [B, K], rows summing to one. An
utterance's weights do not depend on its batch, but for the reference's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lakd_ray.distill.attention_loss import label_log_probabilities


@dataclass(frozen=True)
class WeightingLanguages:
    """Who speaks what: `utterances` has B codes, `teachers` has K (None for a teacher of several languages)."""

    utterance_languages: Sequence[str]
    teacher_languages: Sequence[str | None]


@dataclass(frozen=True)
class WeightingInputs:
    """What a weighting may look at.

    Attributes:
        student_logits_BC: shape [B, C].
        teacher_logits_BKC: shape [B, K, C].
        labels_B: class indices, shape [B].
        tau: temperature of the softmax over the teachers' scores (`similarity`, `similarity-centered`, `confidence`).
        languages: for `language`.
        same_language_weight: share of the teachers of the utterance's language, for `language`.
        confidence: what `confidence` goes by, `label` or `entropy`.
        scores_BK: what a learned attention makes of the utterance, for `attention`.
    """

    student_logits_BC: Tensor
    teacher_logits_BKC: Tensor
    labels_B: Tensor
    weighting_temperature: float = 0.25
    languages: WeightingLanguages | None = None
    same_language_weight: float = 0.8
    confidence_by: str = "label"
    scores_BK: Tensor | None = None


def uniform_weights(inputs: WeightingInputs) -> Tensor:
    """1 / K."""
    teachers = inputs.teacher_logits_BKC
    return torch.full(teachers.shape[:2], 1.0 / teachers.shape[1], dtype=teachers.dtype, device=teachers.device)


def similarity_weights(inputs: WeightingInputs) -> Tensor:
    """softmax_k(cos(z_s, z_k) / tau): the paper's idea (arXiv 2506.08717), for each utterance."""
    cosine_BK = F.cosine_similarity(inputs.student_logits_BC.unsqueeze(1), inputs.teacher_logits_BKC, dim=-1)
    return F.softmax(cosine_BK / inputs.weighting_temperature, dim=-1)


def similarity_centered_weights(inputs: WeightingInputs) -> Tensor:
    """As `similarity` on logits less their mean over classes: softmax ignores a shift, the cosine does not."""
    student_BC, teachers_BKC = inputs.student_logits_BC, inputs.teacher_logits_BKC
    return similarity_weights(
        replace(
            inputs,
            student_logits_BC=student_BC - student_BC.mean(dim=-1, keepdim=True),
            teacher_logits_BKC=teachers_BKC - teachers_BKC.mean(dim=-1, keepdim=True),
        )
    )


def language_weights(inputs: WeightingInputs) -> Tensor:
    """`same_language_weight` for the teachers of the utterance's language, the rest for the others; uniform where none matches.

    Raises:
        ValueError: no languages were given, their numbers do not fit the logits, or the share is not one.
    """
    batch, teachers = inputs.teacher_logits_BKC.shape[:2]
    known, own = inputs.languages, inputs.same_language_weight
    if known is None or (len(known.utterance_languages), len(known.teacher_languages)) != (batch, teachers):
        found = None if known is None else (len(known.utterance_languages), len(known.teacher_languages))
        raise ValueError(
            f"weighting `language` needs the languages of {batch} utterances and {teachers} teachers, found {found}"
        )
    if not 0 <= own <= 1:
        raise ValueError(f"expected same_language_weight in [0, 1], found {own}")
    match_BK = torch.tensor(
        [[spoken == taught for taught in known.teacher_languages] for spoken in known.utterance_languages],
        device=inputs.teacher_logits_BKC.device,
    )
    matches_B1 = match_BK.sum(dim=1, keepdim=True, dtype=inputs.teacher_logits_BKC.dtype)
    others_B1 = teachers - matches_B1
    weight_BK = torch.where(match_BK, own / matches_B1.clamp(min=1), (1 - own) / others_B1.clamp(min=1))
    one_sided_B1 = (matches_B1 == 0) | (others_B1 == 0)
    return torch.where(one_sided_B1, torch.full_like(weight_BK, 1.0 / teachers), weight_BK)


def confidence_weights(inputs: WeightingInputs) -> Tensor:
    """softmax_k(c_k / tau), c_k in [0, 1]: teacher k's probability of the label, or 1 - H(softmax(z_k)) / log C.

    Sources differ. By the label: Zhang et al. 2022 (arXiv 2201.00007) take (1 - softmax_k(CE_k)) / (K - 1), which gives
    no teacher more than 1 / (K - 1) and is not defined for one. By entropy, without the label: Kwon et al., ICASSP
    2020. Here both are scores under the softmax that `similarity` has, so that tau means the same.

    Raises:
        ValueError: `confidence` is neither `label` nor `entropy`.
    """
    if inputs.confidence_by == "label":
        score_BK = label_log_probabilities(inputs.teacher_logits_BKC, inputs.labels_B).exp()
    elif inputs.confidence_by == "entropy":
        logp_BKC = F.log_softmax(inputs.teacher_logits_BKC, dim=-1)
        score_BK = 1 + (logp_BKC.exp() * logp_BKC).sum(dim=-1) / math.log(logp_BKC.shape[-1])
    else:
        raise ValueError(f"expected confidence `label` or `entropy`, found {inputs.confidence_by!r}")
    return F.softmax(score_BK / inputs.weighting_temperature, dim=-1)


def top1_weights(inputs: WeightingInputs) -> Tensor:
    """All for the teacher with the highest probability of the label; teachers that tie share it."""
    better_BK, _ = _count_better_and_tied(inputs)
    best_BK = (better_BK == 0).to(inputs.teacher_logits_BKC.dtype)
    return best_BK / best_BK.sum(dim=-1, keepdim=True)


def rank_weights(inputs: WeightingInputs) -> Tensor:
    """(K + 1 - r_k) / (1 + ... + K), r_k the teacher's rank by its probability of the label; ties have their mean rank.

    Rank-sum weights (Stillwell et al. 1981), one of several customs; of three teachers 1/2, 1/3 and 1/6.
    """
    better_BK, equal_BK = _count_better_and_tied(inputs)
    teachers = inputs.teacher_logits_BKC.shape[1]
    rank_BK = better_BK + (equal_BK.to(inputs.teacher_logits_BKC.dtype) + 1) / 2
    return (teachers + 1 - rank_BK) * (2 / (teachers * (teachers + 1)))


def _count_better_and_tied(inputs: WeightingInputs) -> tuple[Tensor, Tensor]:
    """How many teachers give the label more than each does, and how many as much (itself included), both [B, K]."""
    logp_BK = label_log_probabilities(inputs.teacher_logits_BKC, inputs.labels_B)
    own_BK1, other_B1K = logp_BK.unsqueeze(2), logp_BK.unsqueeze(1)
    return (other_B1K > own_BK1).sum(dim=-1), (other_B1K == own_BK1).sum(dim=-1)


def attention_weights(inputs: WeightingInputs) -> Tensor:
    """softmax_k(scores): learned, see `mixture_losses` for what the scores are trained on.

    Raises:
        ValueError: there are no scores, or their shape does not fit the logits.
    """
    scores_BK, shape = inputs.scores_BK, tuple(inputs.teacher_logits_BKC.shape[:2])
    if scores_BK is None or tuple(scores_BK.shape) != shape:
        found = None if scores_BK is None else tuple(scores_BK.shape)
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
def teacher_weights(name: str, inputs: WeightingInputs, *, per_batch: bool = False) -> Tensor:
    """Weights by a weighting's name, shape [B, K]; no gradient flows through them.

    Args:
        per_batch: whatever the name, average the cosine over the batch before the softmax, one set of weights for all
            (the reference).

    Raises:
        ValueError: the name is not known, or the inputs are not what the weighting needs.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {name!r}: expected one of {', '.join(WEIGHTINGS)}")
    if not per_batch:
        return WEIGHTINGS[name](inputs)
    cosine_BK = F.cosine_similarity(inputs.student_logits_BC.unsqueeze(1), inputs.teacher_logits_BKC, dim=-1)
    weights_K = F.softmax(cosine_BK.mean(dim=0) / inputs.weighting_temperature, dim=-1)
    return weights_K.expand_as(cosine_BK)
