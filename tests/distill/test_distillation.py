"""The distillation loss: compared with its formula in numpy, its gradients, and its limits."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lakd_ray.config import DistillConfig, DistillLossConfig, LabelLossConfig
from lakd_ray.distill import (
    WEIGHTINGS,
    DistillationLoss,
    WeightingInputs,
    distillation_loss,
    match_languages,
    teacher_weights,
)
from lakd_ray.distill.distillation import kl_divergence, standardize

B, K, C = 6, 3, 4
SAME_LANGUAGE = match_languages(("en", "fi", "fr", "sv", "en", "fi"), ("en", "fi", "fr"))
SCORES = torch.from_numpy(np.random.default_rng(5).normal(size=(B, K)))
SETTINGS: dict[str, Any] = {
    "temperature": 5.0,
    "lam": 0.25,
    "weighting_temperature": 0.25,
    "same_language_BK": SAME_LANGUAGE,
    "attention_scores_BK": SCORES,
}
OPTIONS: list[dict[str, Any]] = [
    *({"weighting": name} for name in WEIGHTINGS),
    {"weighting": "confidence", "confidence_by": "entropy"},
    {"weighting": "language", "same_language_weight": 0.5},
    {"standardize_logits": True},
    {"focal_gamma": 2.0},
    {"label_smoothing": 0.1},
    {"label_weights_B": torch.from_numpy(np.random.default_rng(6).uniform(0.5, 2, B))},
]
IDS = [" ".join(str(value) for pair in options.items() for value in pair)[:40] for options in OPTIONS]


def loss_of(*tensors: torch.Tensor, **options: Any) -> DistillationLoss:
    """Call `distillation_loss` with settings by name; with `reference_compat` any weighting is accepted."""
    settings = {name: options.pop(name) for name in DistillLossConfig.model_fields if name in options}
    label = {name: options.pop(name) for name in LabelLossConfig.model_fields if name in options}
    weighting = settings.pop("weighting", "similarity")
    if settings.get("reference_compat"):
        config = DistillLossConfig(**settings).model_copy(update={"weighting": weighting})
    else:
        config = DistillLossConfig(**settings, weighting=weighting)
    return distillation_loss(*tensors, config, label_loss=LabelLossConfig(**label), **options)


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(11)
    return 2 * random.normal(size=(B, C)), 3 * random.normal(size=(B, K, C)), random.integers(0, C, B)


@pytest.fixture
def tensors(arrays) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in arrays)


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum()


def terms(student: np.ndarray, teachers: np.ndarray, labels: np.ndarray, T: float) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy [B] and T^2 KL [B, K], one number at a time."""
    ce = np.array([-np.log(softmax(student[i])[labels[i]]) for i in range(B)])
    kl = np.zeros((B, K))
    for i in range(B):
        q = softmax(student[i] / T)
        for k in range(K):
            p = softmax(teachers[i, k] / T)
            kl[i, k] = T**2 * sum(p[c] * np.log(p[c] / q[c]) for c in range(C))
    return ce, kl


@pytest.mark.parametrize(("temperature", "lam"), [(5.0, 0.25), (1.0, 0.75), (2.5, 1.0)])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_by_hand(weighting, temperature, lam, arrays, tensors):
    ce, kl = terms(*arrays, temperature)
    inputs = WeightingInputs(
        *tensors, DistillLossConfig(weighting=weighting), same_language_BK=SAME_LANGUAGE, scores_BK=SCORES
    )
    weights = teacher_weights(inputs).numpy()  # see test_teacher_weighting.py
    found = loss_of(*tensors, **SETTINGS | {"temperature": temperature, "lam": lam}, weighting=weighting)
    np.testing.assert_allclose(found.ce_B, ce, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.kl_B, (weights * kl).sum(axis=1), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.total_B, (1 - lam) * ce + lam * (weights * kl).sum(axis=1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_reference_compat_by_hand(weighting, arrays, tensors):
    """For any weighting: softmax of the batch's mean cosines, KL averaged over B * C."""
    student, teachers, _ = arrays
    ce, kl = terms(*arrays, 5.0)
    norm = np.linalg.norm
    cosine = np.array(
        [
            np.mean([student[i] @ teachers[i, k] / norm(student[i]) / norm(teachers[i, k]) for i in range(B)])
            for k in range(K)
        ]
    )
    weights = softmax(cosine / 0.25)
    mean_kl = sum(weights[k] * kl[:, k].sum() / (B * C) for k in range(K))
    found = loss_of(*tensors, **SETTINGS, weighting=weighting, reference_compat=True)
    assert float(found.ce) == pytest.approx(ce.mean(), abs=1e-9)
    assert float(found.kl) == pytest.approx(mean_kl, abs=1e-9)
    assert float(found.total) == pytest.approx(0.75 * ce.mean() + 0.25 * mean_kl, abs=1e-9)
    np.testing.assert_allclose(found.weights_BK, np.tile(weights, (B, 1)), rtol=0, atol=1e-9)


def test_objective_is_the_mean_over_utterances(tensors):
    found = loss_of(*tensors, **SETTINGS)
    for name in ("total", "ce", "kl"):
        torch.testing.assert_close(getattr(found, name), getattr(found, f"{name}_B").sum() / B)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_an_utterances_loss_does_not_depend_on_its_batch(options, tensors):
    complete = loss_of(*tensors, **SETTINGS | options)
    for i in range(B):
        alone: dict[str, Any] = SETTINGS | options
        for name, value in alone.items():
            alone[name] = value[i : i + 1] if isinstance(value, torch.Tensor) else value
        found = loss_of(*(tensor[i : i + 1] for tensor in tensors), **alone)
        for name in ("total_B", "ce_B", "kl_B", "weights_BK"):
            torch.testing.assert_close(getattr(found, name)[0], getattr(complete, name)[i], atol=1e-12, rtol=0)


def test_reference_loss_of_an_utterance_depends_on_its_batch(tensors):
    complete = loss_of(*tensors, **SETTINGS, reference_compat=True)
    part = loss_of(*(tensor[:2] for tensor in tensors), **SETTINGS, reference_compat=True)
    assert float((complete.total_B[:2] - part.total_B).abs().max()) > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_standardized_by_hand(temperature, arrays, tensors):
    student, teachers, labels = arrays
    z = [(row - row.mean()) / np.sqrt(((row - row.mean()) ** 2).mean()) for row in student]
    own = [[(row - row.mean()) / row.std() for row in rows] for rows in teachers]
    _, kl = terms(np.array(z), np.array(own), labels, temperature)
    found = loss_of(*tensors, **SETTINGS | {"temperature": temperature}, weighting="uniform", standardize_logits=True)
    np.testing.assert_allclose(found.kl_B, kl.mean(axis=1), rtol=0, atol=1e-9)
    plain = loss_of(*tensors, **SETTINGS, standardize_logits=False)
    torch.testing.assert_close(found.ce_B, plain.ce_B)  # the loss against the labels uses the original logits


def test_standardized_logits_ignore_scale_and_shift(tensors):
    student, teachers, labels = tensors
    original, scaled = (
        loss_of(z, scale * teachers + shift, labels, **SETTINGS, weighting="uniform", standardize_logits=True)
        for z, scale, shift in ((student, 1, 0), (student, 3, 7))
    )
    torch.testing.assert_close(original.kl_B, scaled.kl_B, atol=1e-9, rtol=0)


def test_equal_logits_have_no_variance_and_finite_gradients(tensors):
    student, teachers, labels = torch.full((B, C), 3.0), tensors[1].float(), tensors[2]
    assert float(standardize(student).abs().max()) < 1e-3
    student.requires_grad_()
    loss = loss_of(student, teachers, labels, temperature=2.0, lam=0.5, standardize_logits=True)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert torch.isfinite(loss.total) and torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "options",
    [
        *({"weighting": name} for name in WEIGHTINGS if not name.startswith("similarity")),
        {"weighting": "uniform", "standardize_logits": True},
        {"weighting": "uniform", "focal_gamma": 1.5},
        {"weighting": "uniform", "label_smoothing": 0.1, "label_weights_B": torch.arange(1.0, B + 1).double()},
    ],
    ids=str,
)
def test_gradcheck_where_weights_do_not_depend_on_the_student(options, tensors):
    student, teachers, labels = tensors
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss_of(z, teachers, labels, **SETTINGS | options).total_B, (student,))


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("weighting", ["similarity", "similarity-centered"])
def test_gradient_holds_the_weights_fixed(weighting, compat, tensors):
    student, teachers, labels = tensors
    student.requires_grad_()
    loss = loss_of(student, teachers, labels, **SETTINGS, weighting=weighting, reference_compat=compat)
    (found,) = torch.autograd.grad(loss.total, student)
    fixed_BK = loss.weights_BK.clone()

    def with_fixed_weights(z: torch.Tensor) -> torch.Tensor:
        kl = (fixed_BK * kl_divergence(z, teachers, 5.0)).sum(dim=1).mean() / (C if compat else 1)
        return 0.75 * F.cross_entropy(z, labels) + 0.25 * kl

    assert torch.autograd.gradcheck(with_fixed_weights, (student,))
    (expected,) = torch.autograd.grad(with_fixed_weights(student), student)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_gradient_into_weights_or_teachers(weighting, compat, tensors):
    student, teachers, labels = tensors
    student.requires_grad_()
    teachers.requires_grad_()
    scores = SCORES.clone().requires_grad_()
    loss = loss_of(
        student,
        teachers,
        labels,
        **SETTINGS | {"attention_scores_BK": scores},
        weighting=weighting,
        reference_compat=compat,
    )
    assert not loss.weights_BK.requires_grad
    loss.total.backward()
    assert teachers.grad is None and scores.grad is None
    assert student.grad.abs().min() > 0


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_one_teacher_is_plain_distillation(weighting, arrays, tensors):
    student, teachers, labels = tensors
    settings = SETTINGS | {
        "same_language_BK": torch.zeros(B, 1, dtype=torch.bool),
        "attention_scores_BK": SCORES[:, :1],
    }
    found = loss_of(student, teachers[:, :1], labels, **settings, weighting=weighting)
    soft, logq = F.softmax(teachers[:, 0] / 5, dim=1), F.log_softmax(student / 5, dim=1)
    kd = 25 * F.kl_div(logq, soft, reduction="batchmean")
    torch.testing.assert_close(found.total, 0.75 * F.cross_entropy(student, labels) + 0.25 * kd, atol=1e-12, rtol=0)


@pytest.mark.parametrize("compat", [False, True])
def test_without_the_distillation_term_it_is_fine_tuning(compat, tensors):
    student, teachers, labels = tensors
    student.requires_grad_()
    loss = loss_of(student, teachers, labels, **SETTINGS | {"lam": 0.0}, reference_compat=compat)
    ce = F.cross_entropy(student, labels)
    torch.testing.assert_close(loss.total, ce)
    (found,), (expected,) = (torch.autograd.grad(value, student) for value in (loss.total, ce))
    torch.testing.assert_close(found, expected, atol=1e-15, rtol=0)


def test_a_student_equal_to_its_teachers_has_zero_gradient(tensors):
    student, _, labels = tensors
    student.requires_grad_()
    copies = student.detach().unsqueeze(1).repeat(1, K, 1) + 7  # softmax ignores the shift
    loss = loss_of(student, copies, labels, **SETTINGS | {"lam": 1.0})
    assert float(loss.kl.detach()) == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert float(gradient.abs().max()) < 1e-12


def test_hot_limit_is_half_the_mean_square_of_centered_differences(tensors):
    """T -> infinity: T^2 KL -> |d - mean(d)|^2 / 2C with d = z_k - z_s, so the term neither vanishes nor explodes."""
    student, teachers, _ = tensors
    difference = teachers - student.unsqueeze(1)
    limit = (difference - difference.mean(dim=-1, keepdim=True)).square().sum(dim=-1) / (2 * C)
    torch.testing.assert_close(kl_divergence(student, teachers, 1e4), limit, rtol=1e-2, atol=1e-2)
    far, near = ((kl_divergence(student, teachers, T) - limit).abs().max() for T in (1e2, 1e3))
    assert near < 0.2 * far


def test_extreme_logits_stay_finite(tensors):
    student, teachers, labels = tensors
    student = (1e4 * student).float().requires_grad_()
    loss = loss_of(student, 1e4 * teachers.float(), labels, **SETTINGS | {"temperature": 1.0})
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert torch.isfinite(loss.total) and torch.isfinite(gradient).all()


@pytest.mark.parametrize(("ours", "papers"), [(DistillLossConfig().lam, 0.25), (DistillConfig().kd.lam, 0.75)])
def test_default_lam_balances_like_the_paper_with_its_smaller_kl(ours, papers, tensors):
    """With one teacher, weights have no effect: losses and gradients are equal except for a common factor."""
    student, teachers, labels = tensors
    student.requires_grad_()
    losses = [
        loss_of(student, teachers[:, :1], labels, temperature=5.0, lam=lam, reference_compat=compat)
        for lam, compat in ((ours, False), (papers, True))
    ]
    scaled = [loss.total / (1 - lam) for loss, lam in zip(losses, (ours, papers), strict=True)]
    torch.testing.assert_close(scaled[0], scaled[1], atol=1e-12, rtol=0)
    found, expected = (torch.autograd.grad(value, student)[0] for value in scaled)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("student", "teachers", "labels", "message"),
    [
        ((B,), (B, K, C), (B,), r"expected logits \[B, C\] and \[B, K, C\], found \(6,\) and \(6, 3, 4\)"),
        ((B, C), (B, C), (B,), r"found \(6, 4\) and \(6, 4\)"),
        ((B, C), (B, K, C + 1), (B,), r"found \(6, 4\) and \(6, 3, 5\)"),
        ((B, C), (B + 1, K, C), (B,), r"found \(6, 4\) and \(7, 3, 4\)"),
        ((B, C), (K, B, C), (B,), r"found \(6, 4\) and \(3, 6, 4\)"),
        ((B, C), (B, 0, C), (B,), r"at least one teacher, found teacher logits \(6, 0, 4\)"),
        ((B, C), (B, K, C), (B - 1,), r"expected labels \[B\] = \[6\], found \(5,\)"),
        ((B, C), (B, K, C), (B, 1), r"expected labels \[B\] = \[6\], found \(6, 1\)"),
    ],
)
def test_wrong_shapes(student, teachers, labels, message):
    with pytest.raises(ValueError, match=message):
        loss_of(
            torch.zeros(student), torch.zeros(teachers), torch.zeros(labels, dtype=torch.long), temperature=1.0, lam=0.5
        )


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"weighting_temperature": 0.0},
        {"weighting_temperature": -1.0},
        {"lam": -0.1},
        {"lam": 1.1},
    ],
)
def test_wrong_values(change, tensors):
    (name,) = change
    with pytest.raises(ValueError, match=rf"{name}\n.*(greater|less|finite)"):
        loss_of(*tensors, **SETTINGS | change)
    with pytest.raises(ValueError, match="should be 'uniform'"):
        loss_of(*tensors, **SETTINGS, weighting="none")
    with pytest.raises(ValueError, match="standardize_logits at false, or set reference_compat: false"):
        loss_of(*tensors, **SETTINGS, standardize_logits=True, reference_compat=True)
