"""Test building students of any size, frozen encoders, and teachers of different families."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models as tiny
from transformers import AutoModelForAudioClassification

from lakd_ray.config import DistillLossConfig, ModelConfig
from lakd_ray.errors import ConfigError
from lakd_ray.inference.predictor import Predictor
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import EmotionClassifier, build_model, load_checkpoint, pad_batch, save_checkpoint
from lakd_ray.models.factory import prune_layers
from lakd_ray.train.step import Objective, TrainBatch, compute_losses

FAMILIES: dict[str, dict[str, Any]] = {
    "wav2vec2": tiny.ARCHITECTURE,
    "hubert": tiny.ARCHITECTURE | {"model_type": "hubert"},
    "wavlm": tiny.ARCHITECTURE | {"model_type": "wavlm"},
    "xls-r": tiny.ARCHITECTURE | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "whisper": tiny.WHISPER,
}
DEEP = {"num_hidden_layers": 5, "encoder_layers": 5}


def network(family: str, **changes: Any) -> EmotionClassifier:
    return build_model(
        ModelConfig(config=FAMILIES[family] | changes, freeze_feature_encoder=False), PAPER_EMOTIONS, seed=1
    )


def waves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(length, generator=generator) for length in (9_000, 5_000, 12_000)]


def save_model(folder: Path, model: EmotionClassifier) -> str:
    (folder / "scratch").mkdir(parents=True)
    save_checkpoint(str(folder / "saved"), model.network, tiny.card(), scratch=folder / "scratch")
    return str(folder / "saved")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_student_has_evenly_spread_layers_of_its_teacher(family: str, tmp_path: Path):
    teacher = network(family, **DEEP)
    location = save_model(tmp_path, teacher)
    student = build_model(
        ModelConfig(pretrained=location, freeze_feature_encoder=False, num_layers=3), PAPER_EMOTIONS, seed=0
    )
    assert student.backbone.num_layers == len(student.backbone.transformer_layers) == 3
    assert student.source_layer_indices == (0, 2, 4) and teacher.source_layer_indices is None
    for layer, index in zip(student.backbone.transformer_layers, (0, 2, 4), strict=True):
        source = teacher.backbone.transformer_layers[index].state_dict()
        assert all(torch.equal(source[name], weight) for name, weight in layer.state_dict().items())
    loaded, _ = load_checkpoint(save_model(tmp_path / "student", student))
    stock = AutoModelForAudioClassification.from_pretrained(tmp_path / "student" / "saved")
    with torch.inference_mode():
        expected = student.eval()(*pad_batch(waves())).logits_BC
        torch.testing.assert_close(loaded(*pad_batch(waves())).logits_BC, expected)
    assert len(stock.state_dict()) == len(student.network.state_dict())


@pytest.mark.parametrize(("count", "indices"), [(1, [0]), (2, [0, 4]), (4, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4])])
def test_the_remaining_layers_are_evenly_spread(count: int, indices: list[int]):
    assert prune_layers(network("wav2vec2", **DEEP).network, count) == indices


def test_more_layers_than_the_network_has_raise():
    with pytest.raises(
        ConfigError, match=r"`model\.num_layers` is 6, but the network has 5 layers: set it to 5 or lower"
    ):
        prune_layers(network("wav2vec2", **DEEP).network, 6)


def test_layerdrop_is_turned_off():
    for family in FAMILIES:
        config = network(family, layerdrop=0.5, encoder_layerdrop=0.5).network.config
        assert getattr(config, "encoder_layerdrop" if family == "whisper" else "layerdrop") == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_frozen_encoder_only_the_head_is_trained(family: str, tmp_path: Path):
    location = save_model(tmp_path, network(family))
    model = build_model(ModelConfig(pretrained=location, freeze_encoder=True), PAPER_EMOTIONS, seed=0).train()
    trained = {name.split(".")[1] for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"projector", "classifier"}
    wave_BT, lengths_B = pad_batch(waves())
    first, second = (model(wave_BT, lengths_B).logits_BC for _ in range(2))  # no dropout, no SpecAugment
    assert torch.equal(first, second)
    features_BFH = model.extract_features(wave_BT, lengths_B)
    assert features_BFH.shape == (3, 1, model.feature_dim) and model.count_frames(lengths_B).tolist() == [1, 1, 1]
    assert torch.equal(model(features_BFH, model.count_frames(lengths_B)).logits_BC, first)
    loaded, _ = load_checkpoint(save_model(tmp_path / "probe", model))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(wave_BT, lengths_B).logits_BC, first, atol=1e-5, rtol=0)


def test_a_frozen_language_aware_student_trains_only_its_head(tmp_path: Path):
    source = ModelConfig(
        pretrained=save_model(tmp_path, network("wav2vec2")), freeze_encoder=True, language_aware=tiny.AWARE
    )
    model = build_model(source, PAPER_EMOTIONS, seed=0, languages=tiny.LANGUAGES).train()
    model(*pad_batch(waves()), torch.tensor([0, 1, 2])).logits_BC.sum().backward()
    with_gradient = {name.split(".")[1] for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == {"head"}


def test_teachers_and_students_can_be_of_any_family(tmp_path: Path):
    clips = waves()
    teachers = [Predictor.load(save_model(tmp_path / name, network(name))) for name in FAMILIES]
    arrays = [clip.numpy() for clip in clips]
    teacher_logits_BKC = torch.stack([torch.from_numpy(teacher.logits(arrays)) for teacher in teachers], dim=1)
    assert teacher_logits_BKC.shape == (3, len(FAMILIES), 4) and torch.isfinite(teacher_logits_BKC).all()
    narrow = {"hidden_size": 16, "d_model": 8}
    for family in FAMILIES:
        student = network(family, **narrow).train()
        batch = TrainBatch(*pad_batch(clips), torch.tensor([0, 1, 2]), ["en"] * 3, teacher_logits_BKC)
        losses = compute_losses(
            student, batch, Objective(DistillLossConfig(weighting="similarity", lam=0.5), [None] * len(FAMILIES))
        )
        losses.loss.backward()
        without_gradient = [
            name for name, weight in student.named_parameters() if weight.requires_grad and weight.grad is None
        ]
        assert torch.isfinite(losses.loss) and losses.kl > 0
        assert [name for name in without_gradient if "masked_spec_embed" not in name] == []


def test_a_weighted_layer_sum_is_rejected():
    with pytest.raises(ConfigError, match="use_weighted_layer_sum"):
        network("wav2vec2", use_weighted_layer_sum=True)
