"""Test the engines against a plain torch loop, and that gradients do not depend on ranks and micro-batches.

These tests use real DeepSpeed.
"""

from dataclasses import dataclass

import pytest
import torch
from support import tiny_models as tiny
from support.engine_results import EngineResults, TrainingResult, Weights
from support.engine_steps import (
    ENGINES,
    LANGUAGE_AWARE_OBJECTIVE,
    LONG_STEPS,
    OBJECTIVE,
    OPTIM,
    STEPS,
    UTTERANCES,
    make_batch,
    make_language_aware_model,
)

from lakd_ray.config import OptimConfig
from lakd_ray.models import EmotionClassifier
from lakd_ray.train.engines.optimizer import build_param_groups, make_lr_lambda
from lakd_ray.train.step import Objective, compute_losses

# Softmax is invariant to a shift of all keys, so the gradient of these is rounding noise, which Adam amplifies.
NOISE = ("k_proj.bias", "frame_key.bias")


@dataclass(frozen=True)
class TorchResult:
    """Ten optimizer steps of a plain torch loop."""

    losses: list[float]
    middle_weights: Weights
    final_weights: Weights


@pytest.fixture(scope="module")
def reference() -> TorchResult:
    """Train the same steps with a plain torch loop."""
    return train_with_torch(tiny.model(**tiny.DETERMINISTIC), OBJECTIVE)


def train_with_torch(model: EmotionClassifier, objective: Objective) -> TorchResult:
    """Minimize the mean over the batch with gradient clipping and AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(build_param_groups(model, OPTIM), lr=OPTIM.lr, betas=OPTIM.betas)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, make_lr_lambda(OPTIM, STEPS))
    losses: list[float] = []
    middle_weights: Weights = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = compute_losses(model, make_batch(step), objective).loss / UTTERANCES
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.max_grad_norm)
        assert norm > OPTIM.max_grad_norm or step > 0, "clipping has no effect, so the test does not cover it"
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
        if step == 4:
            middle_weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    return TorchResult(losses, middle_weights, dict(model.network.state_dict()))


def assert_same_weights(actual: Weights, expected: Weights) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        if not name.endswith(NOISE):
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_zero_stage_trains_as_plain_torch(results: EngineResults, reference: TorchResult, stage: int):
    result = results.one_rank.by_zero_stage[stage]
    assert result.losses == pytest.approx(reference.losses, abs=1e-5)
    assert_same_weights(result.middle_weights, reference.middle_weights)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", [name for name in ENGINES if name != "torch"])
def test_fifty_steps_match_the_torch_engine(results: EngineResults, world_size: int, name: str):
    """The same seed gives the same losses for every stage and for both numbers of ranks."""
    expected = results.one_rank.long_losses["torch"]
    losses = (results.one_rank if world_size == 1 else results.two_ranks).long_losses[name]
    assert losses == pytest.approx(expected, abs=1e-5)
    assert len({round(loss, 4) for loss in expected}) == LONG_STEPS


def test_the_torch_engine_gives_the_same_losses_with_one_and_two_ranks(results: EngineResults):
    one_rank, two_ranks = results.one_rank.long_losses["torch"], results.two_ranks.long_losses["torch"]
    assert two_ranks == pytest.approx(one_rank, abs=1e-5)


def test_gradient_checkpointing_does_not_change_the_result(results: EngineResults, reference: TorchResult):
    result = results.one_rank.gradient_checkpointing
    assert result.losses == pytest.approx(reference.losses, abs=1e-5)
    assert_same_weights(result.middle_weights, reference.middle_weights)


@pytest.mark.parametrize("name", list(ENGINES))
def test_one_rank_resumes_the_state_of_two_ranks(results: EngineResults, name: str):
    expected, resumed = results.two_ranks.uninterrupted[name], results.one_rank.resumed_from_two_ranks[name]
    assert resumed.losses == pytest.approx(expected.losses, abs=1e-5)
    for weight, value in expected.weights.items():
        if not weight.endswith(NOISE):
            torch.testing.assert_close(resumed.weights[weight], value, atol=1e-5, rtol=1e-5)


def test_averaged_weights_are_evaluated_and_saved_and_training_continues_without_them(results: EngineResults):
    result = results.one_rank.averaging
    for name, initial in tiny.model(**tiny.DETERMINISTIC).network.named_parameters():
        mean = initial.detach()
        for steps, weights in enumerate(result.step_weights, start=1):
            decay = min(0.5, (1 + steps) / (10 + steps))
            mean = decay * mean + (1 - decay) * weights[name]
        for average in (result.eval_weights, result.saved_average, result.restored_average):
            torch.testing.assert_close(average[name], mean, atol=1e-6, rtol=1e-5, msg=lambda text, n=name: n + text)
        assert torch.equal(result.weights_after_eval[name], result.step_weights[-1][name]), name


def test_a_language_aware_student_trains_as_with_plain_torch(results: EngineResults):
    """For every stage, number of ranks and of micro-batches, losses are means over the same utterances."""
    expected = train_with_torch(make_language_aware_model(**tiny.DETERMINISTIC), LANGUAGE_AWARE_OBJECTIVE)
    for result in (*results.one_rank.language_aware.values(), results.two_ranks.language_aware):
        assert result.losses == pytest.approx(expected.losses, abs=1e-5)
        assert_same_weights(result.middle_weights, expected.middle_weights)
    initial = make_language_aware_model().network.head.teacher_query.weight
    assert (expected.final_weights["head.teacher_query.weight"] - initial).abs().max() > 1e-3


def test_training_changes_the_weights(results: EngineResults):
    """Without training the other comparisons would hold, too."""
    result = results.one_rank.by_zero_stage[1]
    initial = tiny.model(**tiny.DETERMINISTIC).network.state_dict()
    changed = [name for name in initial if (result.final_weights[name] - initial[name]).abs().max() > 1e-4]
    assert len(changed) > 0.9 * len([name for name in initial if name != "wav2vec2.masked_spec_embed"])
    assert len({round(loss, 4) for loss in result.losses}) == STEPS


def shared_results(results: EngineResults) -> dict[str, TrainingResult]:
    """Return the results of steps whose utterances are distributed over micro-batches or ranks."""
    one_rank, two_ranks = results.one_rank, results.two_ranks
    return {
        "one rank, accumulated": one_rank.accumulated,
        "two ranks, unequal": two_ranks.unequal,
        "two ranks, accumulated": two_ranks.accumulated,
    }


@pytest.mark.parametrize("case", ["one rank, accumulated", "two ranks, unequal", "two ranks, accumulated"])
def test_shares_of_any_size_give_the_step_of_their_union(results: EngineResults, case: str):
    expected, result = results.one_rank.by_zero_stage[1], shared_results(results)[case]
    assert result.losses == pytest.approx(expected.losses, abs=1e-5)
    assert_same_weights(result.middle_weights, expected.middle_weights)
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_the_schedule_advances_once_per_step_with_any_accumulation(results: EngineResults):
    expected = [OPTIM.lr * make_lr_lambda(OPTIM, STEPS)(step) for step in (0, 5)]
    for case, result in {"union": results.one_rank.by_zero_stage[1], **shared_results(results)}.items():
        assert result.learning_rates == pytest.approx(expected), case


@pytest.mark.parametrize("frozen", [False, True])
def test_a_resumed_run_is_bit_identical(results: EngineResults, frozen: bool):
    result = results.two_ranks.resumed_frozen if frozen else results.two_ranks.resumed
    expected, resumed = result.uninterrupted, result.resumed
    assert resumed.losses == expected.losses
    assert resumed.learning_rate == expected.learning_rate
    for weight, value in expected.weights.items():
        assert torch.equal(resumed.weights[weight], value), weight
    assert len({*result.first_losses, *expected.losses}) == 6


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]),
    ],
)
def test_constant_and_linear_schedules_match_hand_computed_values(kind, expected):
    factor = make_lr_lambda(OptimConfig(warmup_ratio=0.2, lr_schedule=kind), 10)
    assert [factor(step) for step in range(11)] == pytest.approx(expected)
    assert factor(50) == pytest.approx(expected[-1])  # later epochs may have a few more steps


def test_cosine_schedule_and_edge_cases():
    factor = make_lr_lambda(OptimConfig(warmup_ratio=0.0, lr_schedule="cosine"), 4)
    assert [factor(step) for step in range(5)] == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0])
    assert (
        make_lr_lambda(OptimConfig(warmup_ratio=0.9, lr_schedule="linear"), 1)(0) == 1
    )  # a single step has the full rate
    assert make_lr_lambda(OptimConfig(warmup_ratio=0.0, lr_schedule="linear"), 0)(0) == 1


def test_parameter_groups_decay_only_matrices_and_exclude_frozen_weights():
    model = tiny.model()
    model.network.freeze_feature_encoder()
    decayed, others = build_param_groups(model, OptimConfig(weight_decay=0.3, lr=1e-4))
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert decayed["lr"] == others["lr"] == 1e-4
    assert {parameter.ndim for parameter in others["params"]} == {1}
    assert min(parameter.ndim for parameter in decayed["params"]) == 2
    grouped = {id(parameter) for group in (decayed, others) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    frozen = {id(parameter) for parameter in model.network.wav2vec2.feature_extractor.parameters()}
    assert frozen and not grouped & frozen


def test_the_head_can_have_a_separate_learning_rate():
    model = tiny.model()
    groups = build_param_groups(model, OptimConfig(lr=1e-5, head_lr=1e-3))
    assert sorted({group["lr"] for group in groups}) == [1e-5, 1e-3] and len(groups) == 4
    fast = {id(parameter) for group in groups if group["lr"] == 1e-3 for parameter in group["params"]}
    head = [*model.network.projector.parameters(), *model.network.classifier.parameters()]
    assert fast == {id(parameter) for parameter in head}
