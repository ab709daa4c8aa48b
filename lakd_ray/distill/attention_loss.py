"""Compute the loss that trains learned teacher weights.

Weights are detached in the distillation term, so the scores of weighting `attention` need a separate loss; with the
student's loss they would favor the teacher that is easiest to imitate.

Shape suffixes: B utterances, K teachers, C classes.
"""

import torch.nn.functional as F
from torch import Tensor

from lakd_ray.precision import upcast


def mixture_losses(scores_BK: Tensor, teacher_logits_BKC: Tensor, labels_B: Tensor, *, entropy_weight: float) -> Tensor:
    """Return the negative log-likelihood of the label under the weighted mixture of teachers, minus beta H(w); [B].

        w = softmax(scores)      loss = -log sum_k w_k softmax(z_k)[y] + beta sum_k w_k log w_k

    Args:
        scores_BK: the attention scores of each utterance; the gradient flows into them only. The caller must
            detach the utterance vector that it computes them from.
        teacher_logits_BKC: logits of teachers that were not trained on the utterance: a teacher that was trained on it
            would get a high weight because it has memorized it.
        labels_B: class indices, shape [B].
        entropy_weight: beta, >= 0; above 0 it prevents a collapse of the weights onto one teacher.

    Raises:
        ValueError: entropy_weight is negative.
    """
    if not entropy_weight >= 0:
        raise ValueError(f"expected entropy_weight >= 0, found {entropy_weight}")
    log_weights_BK = F.log_softmax(upcast(scores_BK), dim=-1)
    label_logp_BK = label_log_probabilities(teacher_logits_BKC.detach(), labels_B)
    negative_entropy_B = (log_weights_BK.exp() * log_weights_BK).sum(dim=-1)
    return entropy_weight * negative_entropy_B - (log_weights_BK + label_logp_BK).logsumexp(dim=-1)


def label_log_probabilities(teacher_logits_BKC: Tensor, labels_B: Tensor) -> Tensor:
    """Return log softmax(z_k)[y] of every teacher, shape [B, K]."""
    index_BK1 = labels_B.view(-1, 1, 1).expand(-1, teacher_logits_BKC.shape[1], 1)
    return F.log_softmax(upcast(teacher_logits_BKC), dim=-1).gather(-1, index_BK1).squeeze(-1)
