"""The loss against the labels: cross-entropy, plain, class-balanced, focal or smoothed.

    loss_i = w_i (1 - p_i)^gamma (-log p_i)      p_i the student's probability of the label, w_i its class's weight

Shape suffixes: B utterances, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def label_losses(
    logits_BC: Tensor,
    labels_B: Tensor,
    *,
    weights_B: Tensor | None = None,
    focal_gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of each utterance, shape [B]; it does not depend on the other utterances.

    Args:
        logits_BC: shape [B, C].
        labels_B: class indices, shape [B].
        weights_B: each utterance's weight, that of its class; all one if absent. Divide the sum by the number of
            utterances, not by the sum of weights as torch's weighted mean does: that depends on what is in the batch.
        focal_gamma: gamma of Lin et al. 2017 (arXiv 1708.02002), >= 0; 0 is cross-entropy.
        label_smoothing: share of the label's probability spread over all classes (Szegedy et al. 2016), in [0, 1).

    Raises:
        ValueError: a number is out of range, weights do not fit, or focal loss and smoothing are both asked for.
    """
    if not (focal_gamma >= 0 and 0 <= label_smoothing < 1):
        raise ValueError(
            f"expected focal_gamma >= 0 and label_smoothing in [0, 1); found focal_gamma={focal_gamma}, "
            f"label_smoothing={label_smoothing}"
        )
    if focal_gamma and label_smoothing:
        raise ValueError("focal loss is not defined for smoothed labels: set focal_gamma or label_smoothing to 0")
    if weights_B is not None and weights_B.shape != labels_B.shape:
        raise ValueError(f"expected weights {tuple(labels_B.shape)}, found {tuple(weights_B.shape)}")
    loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none", label_smoothing=label_smoothing)
    if focal_gamma:
        # -loss_B is log p. The clamp keeps the gradient of a power below one finite where p rounds to one.
        missing_B = -torch.expm1(-loss_B)
        loss_B = missing_B.clamp(min=torch.finfo(loss_B.dtype).tiny) ** focal_gamma * loss_B
    return loss_B if weights_B is None else weights_B.to(loss_B.dtype) * loss_B


def class_weights(counts_C: Tensor, balance: float) -> Tensor:
    """Weights (1 - b) / (1 - b^n) of classes with n training utterances, scaled; float64, shape [C].

    That is one over the "effective number of samples" of Cui et al. 2019 (arXiv 1901.05555): b = 0 weighs all classes
    alike, b = 1 (the limit) by 1 / n. They scale the weights to a mean of one over classes; here it is over training
    utterances, so that balancing leaves the scale of the loss, and with it what lam means, alone.

    Args:
        counts_C: utterances of each class in the whole training split. A class without any has weight zero.
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
