"""Teacher weights against the formulas written out in numpy."""

import numpy as np
import pytest
import torch

from lakd_ray.distill import WEIGHTINGS, Languages, teacher_weights

B, K, C = 5, 3, 4
CODES = Languages(("en", "fi", "fr", "sv", "en"), ("en", "fi", "fr"))


@pytest.fixture
def logits() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    return random.normal(size=(B, C)), 2 * random.normal(size=(B, K, C)) + 1


def weights(name: str, student: np.ndarray, teachers: np.ndarray, tau: float = 0.25, **rest) -> np.ndarray:
    rest.setdefault("languages", CODES)
    return teacher_weights(name, torch.from_numpy(student), torch.from_numpy(teachers), tau=tau, **rest).numpy()


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def shares(scores: list[float]) -> np.ndarray:
    """softmax"""
    return np.array([1 / sum(np.exp(other - score) for other in scores) for score in scores])


def expected(name: str, student: np.ndarray, teachers: np.ndarray, tau: float) -> np.ndarray:
    rows = []
    for i in range(B):
        z, own = student[i], [teachers[i, k] for k in range(K)]
        if name == "similarity-centred":
            z, own = z - z.mean(), [teacher - teacher.mean() for teacher in own]
        if name == "uniform":
            rows.append(np.full(K, 1 / K))
        elif name == "language":
            rows.append([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [1 / 3] * 3, [0.8, 0.1, 0.1]][i])
        else:
            rows.append(shares([cosine(z, teacher) / tau for teacher in own]))
    return np.array(rows)


@pytest.mark.parametrize("tau", [0.05, 0.25, 2.0])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_by_hand(name, tau, logits):
    found = weights(name, *logits, tau=tau)
    np.testing.assert_allclose(found, expected(name, *logits, tau), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=1e-12)


def test_one_set_of_weights_per_batch_from_the_mean_cosine(logits):
    student, teachers = logits
    mean = [float(np.mean([cosine(student[i], teachers[i, k]) for i in range(B)])) / 0.25 for k in range(K)]
    np.testing.assert_allclose(
        weights("similarity", *logits, per_batch=True), np.tile(shares(mean), (B, 1)), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_precision_follows_the_logits(name, logits):
    student, teachers = (torch.from_numpy(array).float() for array in logits)
    found = teacher_weights(name, student, teachers, tau=0.25, languages=CODES)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected(name, *logits, 0.25), atol=1e-6)


@pytest.mark.parametrize("per_batch", [False, True])
@pytest.mark.parametrize("name", ["uniform", "similarity", "similarity-centred"])
def test_equal_teachers_have_equal_weights(name, per_batch, logits):
    student, teachers = logits
    found = weights(name, student, np.repeat(teachers[:, :1], K, axis=1), per_batch=per_batch)
    np.testing.assert_allclose(found, 1 / K, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_one_teacher_has_all_the_weight(name, logits):
    student, teachers = logits
    found = weights(name, student, teachers[:, :1], languages=Languages(CODES.utterances, ("fi",)))
    np.testing.assert_allclose(found, 1, rtol=0, atol=1e-12)


def test_the_teacher_that_agrees_wins_as_tau_falls(logits):
    student, teachers = logits
    teachers = teachers.copy()
    teachers[:, 1] = 3 * student  # cosine 1
    assert weights("similarity", student, teachers, tau=0.001)[:, 1] == pytest.approx(1)
    np.testing.assert_allclose(weights("similarity", student, teachers, tau=1e6), 1 / K, atol=1e-5)


def test_centring_makes_weights_blind_to_a_shift_of_logits(logits):
    student, teachers = logits
    shifted = teachers + np.array([5.0, -2.0, 0.0])[None, :, None]
    centred = weights("similarity-centred", student, shifted)
    np.testing.assert_allclose(centred, weights("similarity-centred", student, teachers), atol=1e-12)
    assert np.abs(weights("similarity", student, shifted) - weights("similarity", student, teachers)).max() > 0.05


@pytest.mark.parametrize(
    ("teachers", "row"),
    [
        (("en", "en", "fi"), [0.4, 0.4, 0.2]),
        (("en", "fi", None), [0.8, 0.1, 0.1]),  # a multilingual teacher is nobody's own
        (("en", "en", "en"), [1 / 3] * 3),
        ((None, None, None), [1 / 3] * 3),
        (("fi", "fr", "sv"), [1 / 3] * 3),
    ],
)
def test_language_with_several_or_no_own_teachers(teachers, row, logits):
    found = weights("language", *logits, languages=Languages(("en",) * B, teachers))
    np.testing.assert_allclose(found, [row] * B, rtol=0, atol=1e-12)


@pytest.mark.parametrize("languages", [None, Languages(("en",) * 4, ("en",) * 3), Languages(("en",) * 5, ("en",) * 2)])
def test_language_needs_to_know_all_languages(languages, logits):
    with pytest.raises(
        ValueError, match=r"needs the languages of 5 utterances and 3 teachers, found (None|\(\d, \d\))"
    ):
        weights("language", *logits, languages=languages)


def test_unknown_weighting(logits):
    with pytest.raises(ValueError, match="unknown weighting 'best': expected one of uniform, similarity"):
        weights("best", *logits)
