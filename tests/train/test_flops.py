"""Test counting the floating-point operations of training."""

import pytest
import torch
from support import tiny_models as tiny

from lakd_ray.models import build_model
from lakd_ray.train.flops import flops_per_audio_second, peak_flops


def flops(*, cached: bool = False, **changes: object) -> float:
    return flops_per_audio_second(tiny.model(**changes), features_cached=cached)


def test_an_additional_layer_costs_its_matrices_and_attention():
    """A layer's matrices have 4 D^2 + 2 D I weights, with a multiplication and an addition per weight and frame."""
    D, inner, frames = 32, 64, 16_000 / (5 * 8 * 8)
    difference = flops(num_hidden_layers=3) - flops(num_hidden_layers=2)
    matrices = 3 * 2 * frames * (4 * D * D + 2 * D * inner)
    attention = 3 * 2 * frames * 2 * D * (5 * frames)  # keys and values of five seconds
    assert difference == pytest.approx(matrices + attention, rel=0.02)


def test_frozen_and_cached_parts_cost_less():
    frozen = tiny.model()
    frozen.backbone.feature_encoder.requires_grad_(False)
    frontend = (flops() - flops(cached=True)) / 3
    assert frontend > 0
    assert flops_per_audio_second(frozen, features_cached=False) == pytest.approx(flops(cached=True) + frontend)


def test_counting_does_not_change_the_model_or_the_random_state():
    model = tiny.model()
    before = torch.get_rng_state()
    flops_per_audio_second(model, features_cached=False)
    assert model.training and all(weight.grad is None for weight in model.parameters())
    assert torch.equal(before, torch.get_rng_state())


def test_every_model_family_can_be_counted():
    for config in (tiny.config(aware=tiny.AWARE), tiny.config(feat_extract_norm="layer", do_stable_layer_norm=True)):
        model = build_model(config, tiny.PAPER_EMOTIONS, seed=0, languages=tiny.LANGUAGES, num_teachers=3)
        assert flops_per_audio_second(model, features_cached=False) > 1e6
    whisper = tiny.ModelConfig(config=tiny.WHISPER, freeze_feature_encoder=False)
    assert flops_per_audio_second(build_model(whisper, tiny.PAPER_EMOTIONS, seed=0), features_cached=False) > 1e5


def test_the_peak_of_a_cpu_is_unknown():
    assert peak_flops(torch.device("cpu"), torch.float32) is None
