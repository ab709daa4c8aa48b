"""What learned teacher weights are trained on.

In the distillation term weights are detached, so scores for weighting `attention` need an objective of their own; given
that of the student they would learn the teacher that is easiest to imitate.

Shape suffixes: B utterances, K teachers, C classes.
"""

import torch.nn.functional as F
from torch import Tensor


def mixture_losses(scores_BK: Tensor, teacher_logits_BKC: Tensor, labels_B: Tensor, *, entropy_weight: float) -> Tensor:
    """-log of the probability that the weighted mixture of teachers gives the label, less beta H(w); shape [B].

        w = softmax(scores)      loss = -log sum_k w_k softmax(z_k)[y] + beta sum_k w_k log w_k

    Args:
        scores_BK: what the attention makes of the utterance; the gradient flows here, and only here. Detach the
            student's vector that it is made from.
        teacher_logits_BKC: of teachers that were not trained on the utterance: one that was is trusted for having
            memorised it.
        labels_B: class indices, shape [B].
        beta: weight of the entropy, >= 0; above 0 it keeps the weights from collapsing onto one teacher.

    Raises:
        ValueError: beta is negative.
    """
    if not entropy_weight >= 0:
        raise ValueError(f"expected entropy_weight >= 0, found {entropy_weight}")
    log_weights_BK = F.log_softmax(scores_BK, dim=-1)
    chosen_BK = label_log_probabilities(teacher_logits_BKC.detach(), labels_B)
    negative_entropy_B = (log_weights_BK.exp() * log_weights_BK).sum(dim=-1)
    return entropy_weight * negative_entropy_B - (log_weights_BK + chosen_BK).logsumexp(dim=-1)


def label_log_probabilities(teacher_logits_BKC: Tensor, labels_B: Tensor) -> Tensor:
    """log softmax(z_k)[y] of every teacher, shape [B, K]."""
    index_BK1 = labels_B.view(-1, 1, 1).expand(-1, teacher_logits_BKC.shape[1], 1)
    return F.log_softmax(teacher_logits_BKC, dim=-1).gather(-1, index_BK1).squeeze(-1)
