"""How much each teacher counts for each utterance: pure functions of logits and languages.

Shape suffixes: B utterances, K teachers, C classes. Every function returns weights [B, K], rows summing to one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Languages:
    """Who speaks what: `utterances` has B codes, `teachers` has K (None for a teacher of several languages)."""

    utterances: Sequence[str]
    teachers: Sequence[str | None]


@dataclass(frozen=True)
class WeightingInputs:
    """What a weighting may look at; logits are detached."""

    student_logits_BC: Tensor
    teacher_logits_BKC: Tensor
    tau: float
    languages: Languages | None


def uniform(inputs: WeightingInputs) -> Tensor:
    """1 / K."""
    teachers = inputs.teacher_logits_BKC
    return torch.full(teachers.shape[:2], 1.0 / teachers.shape[1], dtype=teachers.dtype, device=teachers.device)


def similarity(inputs: WeightingInputs) -> Tensor:
    """softmax_k(cos(z_s, z_k) / tau): the paper's idea, for each utterance."""
    cosine_BK = F.cosine_similarity(inputs.student_logits_BC.unsqueeze(1), inputs.teacher_logits_BKC, dim=-1)
    return F.softmax(cosine_BK / inputs.tau, dim=-1)


def similarity_centred(inputs: WeightingInputs) -> Tensor:
    """As `similarity` on logits less their mean over classes: softmax ignores a shift, the cosine does not."""
    student_BC, teachers_BKC = inputs.student_logits_BC, inputs.teacher_logits_BKC
    return similarity(
        WeightingInputs(
            student_BC - student_BC.mean(dim=-1, keepdim=True),
            teachers_BKC - teachers_BKC.mean(dim=-1, keepdim=True),
            inputs.tau,
            inputs.languages,
        )
    )


def language(inputs: WeightingInputs, own: float = 0.8) -> Tensor:
    """`own` for the teachers of the utterance's language, the rest for the others; uniform where none matches.

    Raises:
        ValueError: no languages were given, or their numbers do not fit the logits.
    """
    batch, teachers = inputs.teacher_logits_BKC.shape[:2]
    known = inputs.languages
    if known is None or (len(known.utterances), len(known.teachers)) != (batch, teachers):
        found = None if known is None else (len(known.utterances), len(known.teachers))
        raise ValueError(
            f"weighting `language` needs the languages of {batch} utterances and {teachers} teachers, found {found}"
        )
    match_BK = torch.tensor(
        [[spoken == taught for taught in known.teachers] for spoken in known.utterances],
        device=inputs.teacher_logits_BKC.device,
    )
    matches_B1 = match_BK.sum(dim=1, keepdim=True, dtype=inputs.teacher_logits_BKC.dtype)
    others_B1 = teachers - matches_B1
    weight_BK = torch.where(match_BK, own / matches_B1.clamp(min=1), (1 - own) / others_B1.clamp(min=1))
    one_sided_B1 = (matches_B1 == 0) | (others_B1 == 0)
    return torch.where(one_sided_B1, torch.full_like(weight_BK, 1.0 / teachers), weight_BK)


WEIGHTINGS: dict[str, Callable[[WeightingInputs], Tensor]] = {
    "uniform": uniform,
    "similarity": similarity,
    "similarity-centred": similarity_centred,
    "language": language,
}


def teacher_weights(
    name: str,
    student_logits_BC: Tensor,
    teacher_logits_BKC: Tensor,
    *,
    tau: float,
    languages: Languages | None = None,
    per_batch: bool = False,
) -> Tensor:
    """Weights by a weighting's name, shape [B, K].

    Args:
        per_batch: average the cosine over the batch before the softmax, one set of weights for all (the reference).

    Raises:
        ValueError: the name is not known.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {name!r}: expected one of {', '.join(WEIGHTINGS)}")
    if per_batch:
        cosine_BK = F.cosine_similarity(student_logits_BC.unsqueeze(1), teacher_logits_BKC, dim=-1)
        weights_K = F.softmax(cosine_BK.mean(dim=0) / tau, dim=-1)
        return weights_K.expand_as(cosine_BK)
    return WEIGHTINGS[name](WeightingInputs(student_logits_BC, teacher_logits_BKC, tau, languages))
