"""Teacher weights compared with the formulas in numpy."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from lakd_ray.config import DistillLossConfig, Weighting
from lakd_ray.distill import WEIGHTINGS, WeightingInputs, match_languages, teacher_weights

B, K, C = 5, 3, 4
SAME_LANGUAGE = match_languages(("en", "fi", "fr", "sv", "en"), ("en", "fi", "fr"))
LABELS = np.array([2, 0, 3, 1, 1])
SCORES = np.random.default_rng(4).normal(size=(B, K))
BY_LABEL = ("confidence", "top1", "rank")


@pytest.fixture
def logits() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    return random.normal(size=(B, C)), 2 * random.normal(size=(B, K, C)) + 1


def inputs(
    name: str,
    student: np.ndarray,
    teachers: np.ndarray,
    *,
    per_batch: bool = False,
    same_language_BK: torch.Tensor | None = SAME_LANGUAGE,
    scores_BK: torch.Tensor | None = None,
    **settings: Any,
) -> WeightingInputs:
    """Return the inputs of a weighting; `per_batch` is `reference_compat`, here with any weighting."""
    config = DistillLossConfig(weighting=name, **settings).model_copy(update={"reference_compat": per_batch})
    tensors = (torch.from_numpy(array) for array in (student, teachers, LABELS))
    scores = torch.from_numpy(SCORES[:, : teachers.shape[1]]) if scores_BK is None else scores_BK
    return WeightingInputs(*tensors, config, same_language_BK=same_language_BK, scores_BK=scores)


def weights(name: str, student: np.ndarray, teachers: np.ndarray, **options: Any) -> np.ndarray:
    return teacher_weights(inputs(name, student, teachers, **options)).numpy()


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def shares(scores: list[float]) -> np.ndarray:
    """Return the softmax of the scores."""
    return np.array([1 / sum(np.exp(other - score) for other in scores) for score in scores])


def expected(name: str, student: np.ndarray, teachers: np.ndarray, weighting_temperature: float) -> np.ndarray:
    rows = []
    for i in range(B):
        z, own = student[i], [teachers[i, k] for k in range(K)]
        if name == "similarity-centered":
            z, own = z - z.mean(), [teacher - teacher.mean() for teacher in own]
        chances = [shares(list(teacher))[LABELS[i]] for teacher in own]
        order = sorted(range(K), key=lambda k: -chances[k])
        if name == "uniform":
            rows.append(np.full(K, 1 / K))
        elif name == "confidence":
            rows.append(shares([chance / weighting_temperature for chance in chances]))
        elif name == "top1":
            rows.append([float(k == order[0]) for k in range(K)])
        elif name == "rank":
            rows.append([[3 / 6, 2 / 6, 1 / 6][order.index(k)] for k in range(K)])
        elif name == "attention":
            rows.append(shares(list(SCORES[i])))
        elif name == "language":
            rows.append([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [1 / 3] * 3, [0.8, 0.1, 0.1]][i])
        else:
            rows.append(shares([cosine(z, teacher) / weighting_temperature for teacher in own]))
    return np.array(rows)


@pytest.mark.parametrize("weighting_temperature", [0.05, 0.25, 2.0])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_by_hand(name, weighting_temperature, logits):
    found = weights(name, *logits, weighting_temperature=weighting_temperature)
    np.testing.assert_allclose(found, expected(name, *logits, weighting_temperature), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=1e-12)


def test_one_set_of_weights_per_batch_from_the_mean_cosine(logits):
    student, teachers = logits
    mean = [float(np.mean([cosine(student[i], teachers[i, k]) for i in range(B)])) / 0.25 for k in range(K)]
    np.testing.assert_allclose(
        weights("similarity", *logits, per_batch=True), np.tile(shares(mean), (B, 1)), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_precision_follows_the_logits(name, logits):
    single = (array.astype(np.float32) for array in logits)
    found = teacher_weights(inputs(name, *single, scores_BK=torch.from_numpy(SCORES).float()))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected(name, *logits, 0.25), atol=1e-6)


@pytest.mark.parametrize("per_batch", [False, True])
@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name not in ("language", "attention")])
def test_equal_teachers_have_equal_weights(name, per_batch, logits):
    student, teachers = logits
    found = weights(name, student, np.repeat(teachers[:, :1], K, axis=1), per_batch=per_batch)
    np.testing.assert_allclose(found, 1 / K, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_one_teacher_has_all_the_weight(name, logits):
    student, teachers = logits
    found = weights(name, student, teachers[:, :1], same_language_BK=SAME_LANGUAGE[:, 1:2])
    np.testing.assert_allclose(found, 1, rtol=0, atol=1e-12)


def test_the_teacher_that_agrees_wins_as_tau_falls(logits):
    student, teachers = logits
    teachers = teachers.copy()
    teachers[:, 1] = 3 * student  # cosine 1
    assert weights("similarity", student, teachers, weighting_temperature=0.001)[:, 1] == pytest.approx(1)
    np.testing.assert_allclose(weights("similarity", student, teachers, weighting_temperature=1e6), 1 / K, atol=1e-5)


def test_centered_weights_ignore_a_shift_of_logits(logits):
    student, teachers = logits
    shifted = teachers + np.array([5.0, -2.0, 0.0])[None, :, None]
    centered = weights("similarity-centered", student, shifted)
    np.testing.assert_allclose(centered, weights("similarity-centered", student, teachers), atol=1e-12)
    assert np.abs(weights("similarity", student, shifted) - weights("similarity", student, teachers)).max() > 0.05


@pytest.mark.parametrize(
    ("teachers", "row"),
    [
        (("en", "en", "fi"), [0.4, 0.4, 0.2]),
        (("en", "fi", None), [0.8, 0.1, 0.1]),  # a multilingual teacher matches no language
        (("en", "en", "en"), [1 / 3] * 3),
        ((None, None, None), [1 / 3] * 3),
        (("fi", "fr", "sv"), [1 / 3] * 3),
    ],
)
def test_language_with_several_or_no_own_teachers(teachers, row, logits):
    found = weights("language", *logits, same_language_BK=match_languages(("en",) * B, teachers))
    np.testing.assert_allclose(found, [row] * B, rtol=0, atol=1e-12)


@pytest.mark.parametrize("same_language_BK", [None, SAME_LANGUAGE[:4], SAME_LANGUAGE[:, :2]])
def test_language_needs_all_languages(same_language_BK, logits):
    with pytest.raises(ValueError, match=r"needs `same_language_BK` \[B, K\] = \(5, 3\).*found (None|\(\d, \d\))"):
        weights("language", *logits, same_language_BK=same_language_BK)


def test_same_language_weight(logits):
    found = weights("language", *logits, same_language_weight=0.5)
    np.testing.assert_allclose(found[0], [0.5, 0.25, 0.25], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"same_language_weight\n.*less than or equal to 1"):
        weights("language", *logits, same_language_weight=1.5)


def test_confidence_by_entropy_by_hand(logits):
    """The label has no effect: a confident teacher has a high score, a uniform one has the lowest score, 0."""
    student, teachers = logits
    teachers = teachers.copy()
    teachers[0, 0], teachers[0, 1] = 5.0, [0, 0, 50, 0]
    rows = []
    for i in range(B):
        chances = [shares(list(teacher)) for teacher in teachers[i]]
        entropies = [-sum(chance * np.log(chance) for chance in row) for row in chances]
        rows.append(shares([(1 - entropy / np.log(C)) / 0.25 for entropy in entropies]))
    found = weights("confidence", student, teachers, confidence_by="entropy")
    np.testing.assert_allclose(found, rows, rtol=0, atol=1e-9)
    assert found[0].argmax() == 1 and found[0].argmin() == 0
    other = inputs("confidence", student, teachers, confidence_by="entropy")
    other = replace(other, labels_B=torch.zeros(B, dtype=torch.long))
    np.testing.assert_array_equal(found, teacher_weights(other))


@pytest.mark.parametrize("name", BY_LABEL)
def test_weightings_by_the_label_prefer_the_teacher_with_its_highest_probability(name, logits):
    student, teachers = logits
    teachers = teachers.copy()
    teachers[np.arange(B), 1, LABELS] += 30
    assert (weights(name, student, teachers).argmax(axis=1) == 1).all()
    wrong = replace(inputs(name, student, teachers), labels_B=torch.from_numpy((LABELS + 1) % C))
    assert (teacher_weights(wrong).argmax(dim=1) != 1).all()


@pytest.mark.parametrize(
    ("name", "row"), [("top1", [0.5, 0.5, 0]), ("rank", [2.5 / 6, 2.5 / 6, 1 / 6])], ids=["top1", "rank"]
)
def test_ties_are_shared(name, row, logits):
    student, teachers = logits
    teachers = np.repeat(teachers[:, :1], K, axis=1)
    teachers[np.arange(B), 2, LABELS] -= 1
    np.testing.assert_allclose(weights(name, student, teachers), [row] * B, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BY_LABEL)
def test_extreme_teacher_logits_give_finite_weights(name, logits):
    student, teachers = logits
    for kind in ("label", "entropy"):
        found = weights(name, student, 1e6 * teachers, confidence_by=kind)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scores", [None, torch.zeros(B, K + 1)])
def test_attention_needs_scores(scores, logits):
    incomplete = replace(inputs("attention", *logits), scores_BK=scores)
    with pytest.raises(ValueError, match=r"needs the scores \[B, K\] = \(5, 3\) of a learned attention, found"):
        teacher_weights(incomplete)


def test_unknown_kind_of_confidence(logits):
    with pytest.raises(ValueError, match="'label' or 'entropy'"):
        weights("confidence", *logits, confidence_by="margin")


def test_weightings_are_those_of_the_configuration():
    assert tuple(WEIGHTINGS) == get_args(Weighting)


def test_unknown_weighting(logits):
    with pytest.raises(ValueError, match="should be 'uniform', 'similarity'"):
        weights("best", *logits)
