"""The losses against the labels: compared with numpy, their gradients, and class weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from lakd_ray.config import LabelLossConfig
from lakd_ray.distill import class_weights, label_losses

B, C = 7, 4
COUNTS = torch.tensor([50, 3, 0, 11])


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    return 2 * random.normal(size=(B, C)), random.integers(0, C, B)


def chances(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_by_hand(gamma, arrays):
    logits, labels = arrays
    own = chances(logits)[np.arange(B), labels]
    weights = np.linspace(0.5, 2, B)
    found = label_losses(
        *map(torch.from_numpy, arrays), LabelLossConfig(focal_gamma=gamma), weights_B=torch.from_numpy(weights)
    )
    np.testing.assert_allclose(found, weights * (1 - own) ** gamma * -np.log(own), rtol=0, atol=1e-9)


def test_smoothing_by_hand(arrays):
    logits, labels = arrays
    targets = np.full((B, C), 0.1 / C)
    targets[np.arange(B), labels] += 0.9
    found = label_losses(*map(torch.from_numpy, arrays), LabelLossConfig(label_smoothing=0.1))
    np.testing.assert_allclose(found, -(targets * np.log(chances(logits))).sum(axis=1), rtol=0, atol=1e-9)


def test_plain_is_cross_entropy_to_the_bit(arrays):
    logits, labels = torch.from_numpy(arrays[0]).float(), torch.from_numpy(arrays[1])
    assert torch.equal(label_losses(logits, labels), F.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 0.5}, {"focal_gamma": 2.0}, {"label_smoothing": 0.2}], ids=str)
def test_gradcheck(options, arrays):
    logits, labels = map(torch.from_numpy, arrays)
    assert torch.autograd.gradcheck(
        lambda z: label_losses(z, labels, LabelLossConfig(**options)), (logits.requires_grad_(),)
    )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_gradients_are_finite_for_extreme_probabilities(gamma):
    logits = torch.tensor([[200.0, 0, 0, 0], [-200.0, 0, 0, 0], [20.0, 0, 0, 0]], requires_grad=True)
    loss = label_losses(logits, torch.zeros(3, dtype=torch.long), LabelLossConfig(focal_gamma=gamma))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()
    certain, wrong, _ = loss.tolist()
    assert certain < 1e-6
    assert wrong == pytest.approx(200, rel=0.02)


@pytest.mark.parametrize("balance", [0.0, 0.9, 0.999, 1.0])
def test_class_weights_by_hand(balance):
    counts = COUNTS.tolist()
    effective = [sum(balance**i for i in range(count)) for count in counts]  # (1 - b^n) / (1 - b), without the fraction
    raw = [1 / number if number else 0 for number in effective]
    scale = sum(counts) / sum(weight * count for weight, count in zip(raw, counts, strict=True))
    found = class_weights(COUNTS, balance)
    np.testing.assert_allclose(found, [scale * weight for weight in raw], rtol=0, atol=1e-9)
    assert float((found * COUNTS).sum() / COUNTS.sum()) == pytest.approx(1, abs=1e-12)


def test_full_balance_agrees_with_scikit_learn():
    labels = np.repeat([0, 1, 2, 3], [40, 5, 9, 1])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(class_weights(torch.bincount(torch.from_numpy(labels)), 1.0), expected, atol=1e-9)


def test_zero_balance_gives_equal_weights():
    assert class_weights(torch.tensor([40, 5, 9, 1]), 0.0).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("counts", "balance", "message"),
    [
        (COUNTS, 1.1, r"balance in \[0, 1\], found 1.1"),
        (COUNTS, float("nan"), "found nan"),
        (torch.zeros(4), 1.0, "expected the number of utterances of each class"),
        (torch.tensor([3, -1]), 1.0, r"found \[3.0, -1.0\]"),
        (torch.ones(2, 2), 1.0, "expected the number"),
    ],
)
def test_invalid_class_weights(counts, balance, message):
    with pytest.raises(ValueError, match=message):
        class_weights(counts, balance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"focal_gamma": -1.0}, r"focal_gamma\n.*greater than or equal to 0"),
        ({"focal_gamma": float("nan")}, r"focal_gamma\n.*finite number"),
        ({"label_smoothing": 1.0}, r"label_smoothing\n.*less than 1"),
        ({"focal_gamma": 2.0, "label_smoothing": 0.1}, "focal loss is not defined for smoothed labels"),
        ({"weights_B": torch.ones(C)}, r"expected weights \(7,\), found \(4,\)"),
    ],
)
def test_invalid_settings_and_weights(options, message, arrays):
    settings = {name: value for name, value in options.items() if name != "weights_B"}
    with pytest.raises(ValueError, match=message):
        label_losses(*map(torch.from_numpy, arrays), LabelLossConfig(**settings), weights_B=options.get("weights_B"))
