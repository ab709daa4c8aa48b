"""Classes are matched by name: the order of a list of classes changes no result."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support import tiny_models as tiny

from lakd_ray.config import DistillLossConfig
from lakd_ray.data.class_columns import PROBABILITY, class_columns, read_class_columns
from lakd_ray.data.provenance import Provenance
from lakd_ray.errors import CheckpointError, DataError
from lakd_ray.inference.predictor import Predictor
from lakd_ray.labels import KNOWN_EMOTIONS, PAPER_EMOTIONS, canonical_emotion, class_indices
from lakd_ray.models import CheckpointMetadata, EmotionClassifier, pad_batch, save_checkpoint
from lakd_ray.models.pretrained_head import reorder_head
from lakd_ray.train.step import Objective, TrainBatch, compute_losses

ORDERS = [order for order in itertools.permutations(PAPER_EMOTIONS) if order[0] != "anger"][::5]


@pytest.mark.parametrize("order", ORDERS)
def test_class_indices_reorder_an_array_by_name(order: tuple[str, ...]):
    values_C = np.arange(4)
    by_name = dict(zip(PAPER_EMOTIONS, values_C, strict=True))
    assert values_C[class_indices(PAPER_EMOTIONS, order, context="a file")].tolist() == [by_name[n] for n in order]


@pytest.mark.parametrize(
    "found", [("anger", "fear", "neutral", "sadness"), PAPER_EMOTIONS[:3], (*PAPER_EMOTIONS, "anger"), ()]
)
def test_other_classes_are_refused_with_both_lists(found: tuple[str, ...]):
    with pytest.raises(DataError, match=r"in any order\. Classes are matched by name") as error:
        class_indices(found, PAPER_EMOTIONS, context="predictions.parquet")
    assert "predictions.parquet has the classes" in str(error.value)
    assert all(", ".join(names) in str(error.value) for names in (found, PAPER_EMOTIONS))


def test_known_abbreviations_have_one_meaning_and_other_names_are_unchanged():
    assert [canonical_emotion(name) for name in ("neu", "hap", "ang", "sad")] == [
        "neutral", "happiness", "anger", "sadness",
    ]  # fmt: skip
    assert [canonical_emotion(name) for name in (" Angry", "CALM", "LABEL_0", "joy")] == [
        "anger", "calm", "LABEL_0", "joy",
    ]  # fmt: skip
    assert all(canonical_emotion(name) == name for name in KNOWN_EMOTIONS)


def test_columns_of_classes_are_read_by_name():
    values_RC = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    columns = class_columns(PROBABILITY, PAPER_EMOTIONS, values_RC)
    shuffled = pa.table({"other": [0] * 5} | {name: columns[name] for name in reversed(columns)})
    np.testing.assert_array_equal(
        read_class_columns(shuffled, PROBABILITY, PAPER_EMOTIONS, context="a file"), values_RC
    )


def reordered(model: EmotionClassifier, order: tuple[str, ...]) -> EmotionClassifier:
    """Return the same model with its outputs in a different order, in place."""
    head = getattr(model.network, "head", model.network)
    head._init_weights = model.network._init_weights
    reorder_head(head, {name: index for index, name in enumerate(PAPER_EMOTIONS)}, order)
    model.network.config.id2label = dict(enumerate(order))
    return model


def save(folder: Path, model: EmotionClassifier, order: tuple[str, ...] = PAPER_EMOTIONS) -> str:
    metadata = CheckpointMetadata("tiny", order, ("en",), Provenance(), {})
    (folder / "scratch").mkdir(parents=True)
    save_checkpoint(str(folder / "saved"), model.network, metadata, scratch=folder / "scratch")
    return str(folder / "saved")


def waves() -> list[Any]:
    random = np.random.default_rng(0)
    return [(0.1 * random.standard_normal(length)).astype(np.float32) for length in (6_000, 9_000, 5_000)]


@pytest.mark.parametrize("build", [tiny.model, tiny.aware])
def test_a_checkpoint_in_any_order_gives_the_same_logits_by_name(tmp_path: Path, build: Any):
    expected_BC = Predictor.load(save(tmp_path / "plain", build())).logits(waves())
    for number, order in enumerate(ORDERS[:2]):
        location = save(tmp_path / str(number), reordered(build(), order), order)
        predictor = Predictor.load(location, emotions=PAPER_EMOTIONS)
        np.testing.assert_allclose(predictor.logits(waves()), expected_BC, rtol=0, atol=1e-6)
        assert predictor.emotions == predictor.info.emotions == PAPER_EMOTIONS
        by_itself = Predictor.load(location)
        assert by_itself.emotions == order
        indices = [PAPER_EMOTIONS.index(name) for name in order]
        np.testing.assert_allclose(by_itself.logits(waves()), expected_BC[:, indices], rtol=0, atol=1e-6)
    with pytest.raises(DataError, match=r"`distill\.external_teachers` maps the classes of a teacher with other ones"):
        Predictor.load(location, emotions=(*PAPER_EMOTIONS[:3], "fear"))


def test_logits_from_cached_features_are_in_the_requested_order():
    model = tiny.model().eval()
    metadata = CheckpointMetadata("tiny", PAPER_EMOTIONS, ("en",), Provenance(), {})
    features = [0.1 * np.random.default_rng(0).standard_normal((20, model.feature_dim)).astype(np.float32)]
    expected, actual = (
        Predictor(model, metadata, emotions=emotions).logits_from_features(features)
        for emotions in (PAPER_EMOTIONS, PAPER_EMOTIONS[::-1])
    )
    np.testing.assert_array_equal(actual, expected[:, ::-1])


def test_a_model_whose_metadata_has_a_different_order_is_refused():
    model = tiny.model()
    with pytest.raises(CheckpointError, match="outputs anger, happiness, neutral, sadness, but"):
        Predictor(model, CheckpointMetadata("tiny", PAPER_EMOTIONS[::-1], ("en",), Provenance(), {}))


@pytest.mark.parametrize("weighting", ["uniform", "similarity", "confidence", "top1"])
def test_losses_of_a_student_do_not_depend_on_the_order_of_the_classes(tmp_path: Path, weighting: str):
    """Teachers in three different orders, students in two."""
    labels_B, wave_BT = torch.tensor([0, 3, 1]), [torch.from_numpy(wave) for wave in waves()]
    objective = Objective(DistillLossConfig.model_validate({"weighting": weighting, "lam": 0.5}), [None] * 2)
    checkpoints = [
        save(tmp_path / str(seed), reordered(tiny.model(seed=seed), order), order)
        for seed, order in enumerate(ORDERS[:2], start=1)
    ]
    losses = []
    for order in (PAPER_EMOTIONS, ORDERS[2]):
        teachers = [Predictor.load(checkpoint, emotions=order).logits(waves()) for checkpoint in checkpoints]
        teacher_logits_BKC = 3 * torch.from_numpy(np.stack(teachers, axis=1))
        student = reordered(tiny.model(**tiny.DETERMINISTIC), order).eval()
        labels = torch.tensor([order.index(PAPER_EMOTIONS[label]) for label in labels_B])
        batch = TrainBatch(*pad_batch(wave_BT), labels, ["en"] * 3, teacher_logits_BKC)
        losses.append(compute_losses(student, batch, objective))
    first, second = (sums.to_tensor() for sums in losses)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    assert first[0] > 0
