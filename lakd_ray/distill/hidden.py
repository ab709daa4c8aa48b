"""Hidden-state distillation: the student's hidden states are drawn towards a teacher's, frame by frame.

Shape suffixes: B utterances, F frames, D the student's hidden size, E the teacher's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hidden_state_losses(
    student_hidden_BFD: Tensor, teacher_hidden_BFE: Tensor, lengths_B: Tensor, projection_ED: Tensor | None = None
) -> Tensor:
    """Mean square of the difference over an utterance's own frames and the teacher's channels, shape [B].

    The hint loss of FitNets (Romero et al. 2015, arXiv 1412.6550), which takes half the sum. As there, the map goes
    from the student to the teacher: were the teacher mapped, both could agree on nothing.

    Args:
        student_hidden_BFD: shape [B, F, D].
        teacher_hidden_BFE: shape [B, F, E]; no gradient flows into it.
        frames_B: each utterance's number of frames, at least one; what lies beyond may be anything.
        map_ED: linear map to the teacher's size, as `torch.nn.Linear`'s weight; trained with the student. May be left
            out where D equals E.

    Raises:
        ValueError: shapes do not fit.
    """
    found = tuple(student_hidden_BFD.shape), tuple(teacher_hidden_BFE.shape), tuple(lengths_B.shape)
    if not (student_hidden_BFD.ndim == teacher_hidden_BFE.ndim == 3) or found[0][:2] != found[1][:2]:
        raise ValueError(f"expected hidden states [B, F, D] and [B, F, E], found {found[0]} and {found[1]}")
    if found[2] != found[0][:1]:
        raise ValueError(f"expected frames [B] = [{found[0][0]}], found {found[2]}")
    sizes = found[1][2], found[0][2]
    fits = sizes[0] == sizes[1] if projection_ED is None else tuple(projection_ED.shape) == sizes
    if not fits:
        given = "none" if projection_ED is None else tuple(projection_ED.shape)
        raise ValueError(f"expected a map [E, D] = {sizes} between hidden states of these sizes, found {given}")
    beyond_BF1 = (torch.arange(found[0][1], device=lengths_B.device) >= lengths_B.unsqueeze(1)).unsqueeze(-1)
    # Masked before the map and not after: its gradient would meet whatever lies beyond, and zero times NaN is NaN.
    mapped_BFE = student_hidden_BFD.masked_fill(beyond_BF1, 0)
    if projection_ED is not None:
        mapped_BFE = F.linear(mapped_BFE, projection_ED)
    difference_BFE = mapped_BFE - teacher_hidden_BFE.detach().masked_fill(beyond_BF1, 0)
    return difference_BFE.square().mean(dim=-1).sum(dim=-1) / lengths_B
