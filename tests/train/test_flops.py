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
    assert peak_flops(torch.device("cpu"), "fp32", tf32=True) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", {"fp32": 67, "tf32": 494.5, "bf16": 989.5, "fp16": 989.5}),
        ("NVIDIA H100 PCIe", {"fp32": 51, "tf32": 378, "bf16": 756, "fp16": 756}),
        ("NVIDIA H100 NVL", {"fp32": 60, "tf32": 417.5, "bf16": 835.5, "fp16": 835.5}),
        ("NVIDIA H200", {"fp32": 67, "tf32": 494.5, "bf16": 989.5, "fp16": 989.5}),
        ("NVIDIA H200 NVL", {"bf16": 835.5}),
        ("NVIDIA GH200 480GB", {"bf16": 989.5}),
        ("NVIDIA B200", {"fp32": 75, "tf32": 1125, "bf16": 2250, "fp16": 2250}),
        ("NVIDIA GB200", {"bf16": 2500}),
        ("NVIDIA A100-SXM4-80GB", {"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312}),
        ("NVIDIA A100 80GB PCIe", {"bf16": 312}),
        ("NVIDIA A10", {"fp32": 31.2, "tf32": 62.5, "bf16": 125, "fp16": 125}),
        ("NVIDIA L4", {"fp32": 30.3, "tf32": 60, "bf16": 121, "fp16": 121}),
        ("NVIDIA L40S", {"fp32": 91.6, "tf32": 183, "bf16": 362, "fp16": 362}),
        ("NVIDIA L40", {"bf16": 181}),
        ("Tesla T4", {"fp32": 8.1, "tf32": 8.1, "bf16": None, "fp16": 65}),
        ("Tesla V100-SXM2-16GB", {"fp32": 15.7, "bf16": None, "fp16": 125}),
        ("Tesla V100-PCIE-32GB", {"fp16": 112}),
        ("Tesla V100S-PCIE-32GB", {"fp16": 130}),
        # unknown, or a share of a GPU
        ("NVIDIA A10G", {"fp32": None, "bf16": None}),
        ("NVIDIA H20", {"bf16": None}),
        ("NVIDIA GeForce RTX 4090", {"bf16": None}),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", {"bf16": None}),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_data_sheet(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: dict[str, float | None]
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    for key, teraflops in expected.items():
        precision, tf32 = ("fp32", True) if key == "tf32" else (key, False)
        peak = peak_flops(torch.device("cuda"), precision, tf32=tf32)
        assert peak == (None if teraflops is None else teraflops * 1e12), (name, key)
