"""Compute the loss against the labels: cross-entropy with optional class weights, focal factor and label smoothing.

    loss_i = w_i (1 - p_i)^gamma (-log p_i)      p_i the student's probability of the label, w_i the weight of its class

Shape suffixes: B utterances, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lakd_ray.config import LabelLossConfig
from lakd_ray.precision import upcast


def label_losses(
    logits_BC: Tensor,
    labels_B: Tensor,
    settings: LabelLossConfig | None = None,
    *,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Return the loss of each utterance, shape [B], which does not depend on the other utterances.

    Args:
        logits_BC: logits of the student, shape [B, C].
        labels_B: class indices, shape [B].
        settings: `focal_gamma`, gamma of Lin et al. 2017 (arXiv 1708.02002), and `label_smoothing` (Szegedy et al.
            2016); None: plain cross-entropy. `class_balance` is applied through `weights_B`.
        weights_B: the weight of each utterance's class, see `class_weights`; all one if None. Divide the sum of losses
            by the number of utterances, not by the sum of weights as torch's weighted mean does, for that sum depends
            on the batch.

    Raises:
        ValueError: the shape of the weights is wrong.
    """
    settings = settings or LabelLossConfig()
    if weights_B is not None and weights_B.shape != labels_B.shape:
        raise ValueError(f"expected weights {tuple(labels_B.shape)}, found {tuple(weights_B.shape)}")
    loss_B = F.cross_entropy(upcast(logits_BC), labels_B, reduction="none", label_smoothing=settings.label_smoothing)
    if settings.focal_gamma:
        # -loss_B is log p. The clamp keeps the gradient of a power below one finite where p rounds to one.
        error_probability_B = -torch.expm1(-loss_B)
        loss_B = error_probability_B.clamp(min=torch.finfo(loss_B.dtype).tiny) ** settings.focal_gamma * loss_B
    return loss_B if weights_B is None else weights_B.to(loss_B.dtype) * loss_B


def class_weights(counts_C: Tensor, balance: float) -> Tensor:
    """Return the scaled weights (1 - b) / (1 - b^n) of classes with n training utterances; float64, shape [C].

    That is one over the "effective number of samples" of Cui et al. 2019 (arXiv 1901.05555): b = 0 gives equal weights,
    b = 1 (the limit) 1 / n. The source scales the weights to a mean of one over classes; here the mean is over training
    utterances, so that balancing changes neither the scale of the loss nor the meaning of lam.

    Args:
        counts_C: number of utterances of each class in the training split. A class without utterances has weight zero.
        balance: b, in [0, 1].

    Raises:
        ValueError: b is out of range, or there are no utterances.
    """
    if not 0 <= balance <= 1:
        raise ValueError(f"expected a class balance in [0, 1], found {balance}")
    counts_C = counts_C.double()
    if counts_C.ndim != 1 or counts_C.min() < 0 or not counts_C.sum() > 0:
        raise ValueError(f"expected the number of utterances of each class [C], found {counts_C.tolist()}")
    effective_C = counts_C if balance == 1 else (1 - balance**counts_C) / (1 - balance)
    raw_C = torch.where(counts_C > 0, 1 / effective_C.clamp(min=1), 0.0)
    return raw_C * counts_C.sum() / (raw_C * counts_C).sum()
