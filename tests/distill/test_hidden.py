"""Hidden-state distillation: by hand, gradients, and no trace of padding."""

import numpy as np
import pytest
import torch

from lakd_ray.distill import hidden_state_losses

B, F, D, E = 3, 5, 4, 6
FRAMES = torch.tensor([5, 2, 1])


@pytest.fixture
def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """student_BFD, teacher_BFE, map_ED."""
    random = np.random.default_rng(8)
    student, teacher, mapping = (
        torch.from_numpy(random.normal(size=shape)) for shape in ((B, F, D), (B, F, E), (E, D))
    )
    return student, teacher, mapping


def test_by_hand(tensors):
    student, teacher, mapping = (tensor.numpy() for tensor in tensors)
    expected = []
    for i in range(B):
        frames = range(int(FRAMES[i]))
        squares = [
            (sum(mapping[e, d] * student[i, f, d] for d in range(D)) - teacher[i, f, e]) ** 2
            for f in frames
            for e in range(E)
        ]
        expected.append(np.mean(squares))
    found = hidden_state_losses(*tensors[:2], FRAMES, tensors[2])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_without_a_map_equal_states_cost_nothing(tensors):
    student = tensors[0]
    assert hidden_state_losses(student, student.clone(), FRAMES).tolist() == [0.0] * B
    found = hidden_state_losses(student, student + 2, FRAMES)
    np.testing.assert_allclose(found, [4.0] * B, rtol=0, atol=1e-12)


def test_gradcheck(tensors):
    student, teacher, mapping = tensors
    wanted = (student.requires_grad_(), mapping.requires_grad_())
    assert torch.autograd.gradcheck(lambda hidden, m: hidden_state_losses(hidden, teacher, FRAMES, m), wanted)


def test_padding_and_teacher_get_no_gradient_whatever_lies_there(tensors):
    student, teacher, mapping = tensors
    clean = hidden_state_losses(student, teacher, FRAMES, mapping)
    student, teacher = student.clone(), teacher.clone()
    for i, frames in enumerate(FRAMES):
        student[i, frames:] = float("nan")
        teacher[i, frames:] = float("inf")
    for tensor in (student, teacher, mapping):
        tensor.requires_grad_()
    found = hidden_state_losses(student, teacher, FRAMES, mapping)
    assert torch.equal(found, clean)
    found.sum().backward()
    assert teacher.grad is None
    assert torch.isfinite(mapping.grad).all() and torch.isfinite(student.grad).all()
    for i, frames in enumerate(FRAMES):
        assert not student.grad[i, frames:].any() and student.grad[i, :frames].all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((B, F, D), (B, F, E), (B,), None), r"expected a map \[E, D\] = \(6, 4\) .* found none"),
        (((B, F, D), (B, F, E), (B,), (D, E)), r"expected a map \[E, D\] = \(6, 4\) .* found \(4, 6\)"),
        (((B, F, D), (B, F + 1, E), (B,), (E, D)), r"found \(3, 5, 4\) and \(3, 6, 6\)"),
        (((B, D), (B, E), (B,), (E, D)), r"expected hidden states \[B, F, D\] and \[B, F, E\]"),
        (((B, F, D), (B, F, D), (B + 1,), None), r"expected frames \[B\] = \[3\], found \(4,\)"),
    ],
)
def test_wrong_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        hidden_state_losses(*(None if shape is None else torch.ones(shape) for shape in shapes))
