"""The loss that trains learned teacher weights."""

import numpy as np
import pytest
import torch

from lakd_ray.distill import mixture_losses

B, K, C = 5, 3, 4


@pytest.fixture
def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(9)
    arrays = random.normal(size=(B, K)), 3 * random.normal(size=(B, K, C)), random.integers(0, C, B)
    scores, teachers, labels = (torch.from_numpy(array) for array in arrays)
    return scores, teachers, labels


@pytest.mark.parametrize("entropy_weight", [0.0, 0.1])
def test_by_hand(entropy_weight, tensors):
    scores, teachers, labels = (tensor.numpy() for tensor in tensors)
    expected = []
    for i in range(B):
        w = np.exp(scores[i]) / np.exp(scores[i]).sum()
        p = np.exp(teachers[i]) / np.exp(teachers[i]).sum(axis=1, keepdims=True)
        expected.append(-np.log((w[:, None] * p).sum(axis=0)[labels[i]]) + entropy_weight * (w * np.log(w)).sum())
    np.testing.assert_allclose(mixture_losses(*tensors, entropy_weight=entropy_weight), expected, rtol=0, atol=1e-9)


def test_gradcheck_and_no_gradient_into_the_teachers(tensors):
    scores, teachers, labels = tensors
    scores.requires_grad_()
    teachers.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: mixture_losses(s, teachers.detach(), labels, entropy_weight=0.1), (scores,)
    )
    mixture_losses(scores, teachers, labels, entropy_weight=0.1).sum().backward()
    assert teachers.grad is None
    assert scores.grad.abs().min() > 0


@pytest.mark.parametrize(("entropy_weight", "share"), [(0.0, (0.99, 1.0)), (0.3, (0.5, 0.95)), (100.0, (0.33, 0.35))])
def test_the_best_teacher_wins_and_entropy_retains_the_others(entropy_weight, share):
    teachers_1KC = torch.tensor([[[3.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 3.0, 0]]])
    scores_NK = torch.linspace(-2, 8, 1001).unsqueeze(1) * torch.tensor([0.0, 1.0, 0.0])
    loss_N = mixture_losses(
        scores_NK, teachers_1KC.expand(1001, -1, -1), torch.ones(1001, dtype=torch.long), entropy_weight=entropy_weight
    )
    own = float(scores_NK[loss_N.argmin()].softmax(dim=0)[1])
    assert share[0] < own < share[1]


def test_negative_entropy_weight(tensors):
    with pytest.raises(ValueError, match=r"expected entropy_weight >= 0, found -0\.1"):
        mixture_losses(*tensors, entropy_weight=-0.1)
