"""Test the engines where ranks, precisions or runs differ: see `support.engine_faults`."""

import pytest
import torch
from support.engine_results import EngineResults
from support.engine_steps import ENGINES, OPTIM

from lakd_ray.config import TrainConfig
from lakd_ray.train.engines.deepspeed import build_deepspeed_config


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "torch"])
def test_ranks_may_use_different_weights(results: EngineResults, name: str):
    """The utterance of one rank is too short for SpecAugment, so it uses fewer weights than the other rank."""
    expected, result = results.two_ranks.short_utterance["torch"], results.two_ranks.short_utterance[name]
    assert result.losses == pytest.approx(expected.losses, abs=1e-5)
    for weight, value in expected.weights.items():
        if not weight.endswith("k_proj.bias"):  # whose gradient is rounding noise
            torch.testing.assert_close(result.weights[weight], value, atol=1e-5, rtol=1e-5, msg=weight)
    assert expected.weights["offset"].abs().max() > 1e-4
    assert any(weight.endswith("masked_spec_embed") for weight in expected.weights)


def test_all_ranks_skip_a_step_in_which_the_gradient_of_one_overflows(results: EngineResults):
    first, second = results.two_ranks.overflow_by_rank
    assert first.scales == second.scales
    assert first.scales[1] == first.scales[0] / 2 == first.scales[2]
    for ours, theirs in zip(first.weights, second.weights, strict=True):
        for name, value in ours.items():
            assert torch.isfinite(value).all() and torch.equal(value, theirs[name]), name
    before, skipped, after = first.weights
    assert all(torch.equal(skipped[name], value) for name, value in before.items())
    assert any((after[name] - value).abs().max() > 1e-4 for name, value in skipped.items())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_averages_in_half_precision_are_those_of_the_fp32_weights(results: EngineResults, stage: int):
    result = results.two_ranks.half_precision_averaging[stage]
    num_rounded = 0
    for name, value in result.saved_average.items():
        assert value.dtype == torch.float32
        assert torch.equal(result.restored_average[name], value), name
        mean = result.step_weights[0][name]
        for steps, weights in enumerate(result.step_weights[1:], start=1):
            decay = min(0.5, (1 + steps) / (10 + steps))
            mean = decay * mean + (1 - decay) * weights[name]
        torch.testing.assert_close(value, mean, atol=1e-6, rtol=1e-6, msg=name)
        assert torch.equal(result.eval_weights[name], value.bfloat16()), name
        assert torch.equal(result.weights_after_eval[name], result.step_weights[-1][name].bfloat16()), name
        num_rounded += int((value.bfloat16().float() != value).sum())
    assert num_rounded > 0.9 * sum(value.numel() for value in result.saved_average.values())


def test_one_rank_loads_the_average_of_two_ranks(results: EngineResults):
    expected = results.two_ranks.half_precision_averaging[2].saved_average
    for name, value in results.one_rank.average_of_two_ranks.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("name", list(ENGINES))
def test_nothing_of_a_run_stays_in_memory(results: EngineResults, name: str):
    assert results.one_rank.alive_after_close[name] == []


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_buffers_of_the_reduction_are_not_larger_than_the_model_and_50_mb(stage: int):
    for num_weights, expected in [(1_000, 1_000), (95_000_000, 25_000_000), (2_000_000_000, 25_000_000)]:
        zero = build_deepspeed_config(OPTIM, TrainConfig(zero_stage=stage), num_weights)["zero_optimization"]
        assert zero["reduce_bucket_size"] == expected
        if stage == 3:
            assert zero["stage3_max_live_parameters"] < num_weights / 2
