"""Test that every loss setting takes effect, and that the losses of shares add up to those of their union."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import fake_data as noise
from support import tiny_models as tiny

from lakd_ray.config import DistillLossConfig, Experiment, LabelLossConfig
from lakd_ray.data.reader import AudioBatch
from lakd_ray.models import ClassifierOutput
from lakd_ray.models.spec_augment import SpecAugmentMasks
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.train.data_loader import RankDataLoader
from lakd_ray.train.step import LOSS_NAMES, Objective, TrainBatch, compute_losses

B, K, C = 7, 3, 4
TEACHERS = ("en", "fi", None)
RANDOM = np.random.default_rng(1)
LOGITS = torch.from_numpy(2 * RANDOM.normal(size=(B, C))).float()
FULL_BATCH = TrainBatch(
    inputs=LOGITS,  # the model of these tests returns its inputs as logits
    lengths_B=torch.ones(B, dtype=torch.long),
    labels_B=torch.from_numpy(RANDOM.integers(0, C, B)),
    languages=["en", "fi", "fr", "en", "fi", "fr", "en"],
    teacher_logits_BKC=torch.from_numpy(3 * RANDOM.normal(size=(B, K, C))).float(),
    label_weights_B=torch.from_numpy(RANDOM.uniform(0.5, 2, B)).float(),
)
Settings = dict[str, Any]
CHANGES: list[
    tuple[Settings, Settings, Settings]
] = [  # (distillation settings before, after the change, label loss settings after)
    *(
        ({}, {"weighting": name}, {})
        for name in ("uniform", "similarity-centered", "language", "confidence", "top1", "rank")
    ),
    ({"weighting": "language"}, {"weighting": "language", "same_language_weight": 0.4}, {}),
    ({"weighting": "confidence"}, {"weighting": "confidence", "confidence_by": "entropy"}, {}),
    ({}, {"weighting_temperature": 1.0}, {}),
    ({}, {"temperature": 2.0}, {}),
    ({}, {"lam": 0.5}, {}),
    ({}, {"standardize_logits": True}, {}),
    ({}, {"reference_compat": True}, {}),
    ({}, {}, {"class_balance": 1.0}),
    ({}, {}, {"focal_gamma": 2.0}),
    ({}, {}, {"label_smoothing": 0.1}),
]
ROWS = list(range(B))


def forward(inputs: torch.Tensor, *_: torch.Tensor | None) -> ClassifierOutput:
    return ClassifierOutput(inputs)


def select_rows(rows: list[int], *, weighted: bool = True) -> TrainBatch:
    assert FULL_BATCH.teacher_logits_BKC is not None and FULL_BATCH.label_weights_B is not None
    return TrainBatch(
        FULL_BATCH.inputs[rows],
        FULL_BATCH.lengths_B[rows],
        FULL_BATCH.labels_B[rows],
        [FULL_BATCH.languages[row] for row in rows],
        FULL_BATCH.teacher_logits_BKC[rows],
        label_weights_B=FULL_BATCH.label_weights_B[rows] if weighted else None,
    )


def loss_sums(batch: TrainBatch, distill: Settings | None, label: Settings) -> torch.Tensor:
    loss = None if distill is None else DistillLossConfig(**distill)
    return compute_losses(forward, batch, Objective(loss, TEACHERS, LabelLossConfig(**label))).to_tensor()


@pytest.mark.parametrize(("before", "after", "label"), CHANGES, ids=str)
def test_every_setting_takes_effect_and_shares_add_up(before, after, label):
    weighted = "class_balance" in label
    union = loss_sums(select_rows(ROWS, weighted=weighted), after, label)
    assert (union - loss_sums(select_rows(ROWS, weighted=False), before, {})).abs().max() > 1e-3, (
        "the setting has no effect"
    )
    if not after.get("reference_compat"):
        shares = [
            loss_sums(select_rows(rows, weighted=weighted), after, label) for rows in (ROWS[:2], ROWS[2:3], ROWS[3:])
        ]
        torch.testing.assert_close(torch.stack(shares).sum(dim=0), union, atol=1e-5, rtol=0)


def test_fine_tuning_is_bit_identical_to_cross_entropy():
    losses = compute_losses(forward, select_rows(ROWS, weighted=False), Objective())
    assert torch.equal(losses.loss, F.cross_entropy(LOGITS, FULL_BATCH.labels_B, reduction="sum"))
    assert not losses.kl.any()


def test_the_loss_names_of_an_objective():
    assert Objective().loss_names == Objective(DistillLossConfig()).loss_names == ("loss", "ce", "kl")
    assert Objective(language_id_loss_weight=0.1).loss_names == ("loss", "ce", "kl", "language")
    assert Objective(DistillLossConfig(weighting="attention"), language_id_loss_weight=0.1).loss_names == LOSS_NAMES


@pytest.mark.parametrize("label", [{"class_balance": 0.9}, {"focal_gamma": 2.0}, {"label_smoothing": 0.1}], ids=str)
def test_fine_tuning_and_distillation_have_the_same_label_loss(label):
    batch = select_rows(ROWS, weighted="class_balance" in label)
    loss, ce, *_ = loss_sums(batch, None, label)
    assert loss == ce == pytest.approx(float(loss_sums(batch, {"lam": 0.0}, label)[0]), abs=1e-5)
    assert abs(ce - float(F.cross_entropy(LOGITS, FULL_BATCH.labels_B, reduction="sum"))) > 1e-3


def test_class_balance_without_weights_raises():
    with pytest.raises(ValueError, match="needs class weights, but the batch has no"):
        loss_sums(select_rows([0, 1], weighted=False), None, {"class_balance": 1.0})


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_class_weights_depend_on_all_of_train_and_not_on_the_batch(balance, tmp_path):
    recipe = {"model": {"pretrained": "some/model"}, "label_loss": {"class_balance": balance}}
    content = {"name": "t", "languages": ["en"], "corpora": [{"name": "c", "root": "x"}]}
    config = Experiment.model_validate(content | {"teacher": recipe, "student": recipe})
    loader = RankDataLoader(
        build_run_graph(config).teachers[0],
        config,
        noise.manifest(tmp_path, train=10, dev=4),
        None,
        rank=0,
        world_size=1,
    )
    rows = np.array([0, 4, 3])  # classes 0, 0 and 3; the ten train rows have 3, 3, 2 and 2 of each class
    batch = loader.collate(AudioBatch(0, "train", rows, [np.ones(8, dtype=np.float32)] * 3))
    assert batch.labels_B.tolist() == [0, 0, 3]
    if balance:
        assert batch.to(torch.device("cpu"), torch.float32).label_weights_B.tolist() == pytest.approx(
            [10 / (4 * 3), 10 / (4 * 3), 10 / (4 * 2)]
        )
    else:
        assert batch.label_weights_B is None


def test_masks_are_drawn_from_seed_epoch_and_utterance_in_training_only(tmp_path):
    recipe = {"model": {"pretrained": "some/model"}}
    content = {"name": "t", "languages": ["en"], "corpora": [{"name": "c", "root": "x"}]}
    config = Experiment.model_validate(content | {"teacher": recipe, "student": recipe})
    run, manifest = build_run_graph(config).teachers[0], noise.manifest(tmp_path, train=10, dev=4)
    loader = RankDataLoader(run, config, manifest, None, rank=0, world_size=1)
    model = tiny.model(mask_time_prob=0.5, mask_time_length=2)

    def masks(rows: list[int], epoch: int = 0, split: str = "train") -> SpecAugmentMasks | None:
        signals = [np.ones(8_000, dtype=np.float32)] * len(rows)
        return loader.collate(AudioBatch(epoch, split, np.array(rows), signals), model).spec_augment

    drawn = masks([4, 3])
    assert drawn is not None and drawn.time_BF is not None and drawn.time_BF.any()
    assert torch.equal(drawn.time_BF[0], masks([7, 4]).time_BF[1])  # with other utterances, on a different worker
    assert not torch.equal(drawn.time_BF, masks([4, 3], epoch=1).time_BF)
    assert masks([4, 3], split="dev") is None
