"""The engine against plain torch, and its gradients' independence of ranks and micro-batches. Real DeepSpeed."""

from typing import Any

import pytest
import torch
from support import tiny_models as tiny
from support.engine_worker import AWARE, ENGINES, LONG, OPTIM, PLAIN, STEPS, UTTERANCES, aware, batch

from lakd_ray.config import OptimConfig
from lakd_ray.models import EmotionClassifier
from lakd_ray.train.engines.optimizer import build_param_groups, make_lr_lambda
from lakd_ray.train.step import Objective, compute_losses

# Softmax ignores a shift that all keys share, so these have no gradient but rounding noise, which Adam blows up.
NOISE = ("k_proj.bias", "frame_key.bias")


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The same steps with torch alone."""
    return by_torch(tiny.model(**tiny.STILL), PLAIN)


def by_torch(model: EmotionClassifier, objective: Objective) -> dict[str, Any]:
    """The mean over the batch, clipped, AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(build_param_groups(model, OPTIM), lr=OPTIM.lr, betas=OPTIM.betas)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, make_lr_lambda(OPTIM, STEPS))
    result: dict[str, Any] = {"losses": []}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = compute_losses(model, batch(step), objective).loss / UTTERANCES
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.max_grad_norm)
        assert norm > OPTIM.max_grad_norm or step > 0  # clipping takes part
        optimizer.step()
        scheduler.step()
        result["losses"].append(float(loss.detach()))
        if step == 4:
            result["middle"] = {name: value.clone() for name, value in model.network.state_dict().items()}
    result["end"] = dict(model.network.state_dict())
    return result


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if not name.endswith(NOISE):
            torch.testing.assert_close(value, other[name], atol=1e-5, rtol=1e-5, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_zero_stage_trains_as_plain_torch_does(found, plain, stage):
    run = found[1][f"zero-{stage}"]
    assert run["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    same_weights(run["middle"], plain["middle"])


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", [name for name in ENGINES if name != "torch"])
def test_fifty_steps_are_those_of_the_plain_engine(found, world, name):
    """Same seed, same losses, for every stage and either number of workers."""
    plain = found[1]["equal"]["torch"]
    assert found[world]["equal"][name] == pytest.approx(plain, abs=1e-5)
    assert len({round(loss, 4) for loss in plain}) == LONG


def test_the_plain_engine_with_two_workers_is_the_one_with_one(found):
    assert found[2]["equal"]["torch"] == pytest.approx(found[1]["equal"]["torch"], abs=1e-5)


def test_recomputing_layers_in_backward_changes_nothing(found, plain):
    assert found[1]["recomputed"]["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    same_weights(found[1]["recomputed"]["middle"], plain["middle"])


@pytest.mark.parametrize("name", list(ENGINES))
def test_one_worker_goes_on_where_two_have_stopped(found, name):
    expected, gone_on = found[2][f"elsewhere {name}"], found[1][f"elsewhere {name}"]
    assert gone_on["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    for weight, value in expected["weights"].items():
        if not weight.endswith(NOISE):
            torch.testing.assert_close(gone_on["weights"][weight], value, atol=1e-5, rtol=1e-5)


def test_averaged_weights_are_judged_and_saved_and_training_goes_on_from_its_own(found):
    run = found[1]["averaged"]
    start = dict(tiny.model(**tiny.STILL).network.named_parameters())
    for name, first in start.items():
        mean = first.detach()
        for steps, weights in enumerate(run["each"], start=1):
            decay = min(0.5, (1 + steps) / (10 + steps))
            mean = decay * mean + (1 - decay) * weights[name]
        for kind in ("judged", "mean", "again"):
            torch.testing.assert_close(run[kind][name], mean, atol=1e-6, rtol=1e-5, msg=lambda text, n=name: n + text)
        assert torch.equal(run["after"][name], run["each"][-1][name]), name


def test_a_language_aware_student_is_trained_as_by_plain_torch(found):
    """Whatever the stage, the ranks and the micro-batches: its losses are means over the same utterances."""
    expected = by_torch(aware(**tiny.STILL), AWARE)
    for world, name in ((1, "aware zero-0"), (1, "aware zero-1"), (1, "aware zero-2"), (2, "aware")):
        run = found[world][name]
        assert run["losses"] == pytest.approx(expected["losses"], abs=1e-5), name
        same_weights(run["middle"], expected["middle"])
    moved = (expected["end"]["head.teacher_query.weight"] - aware().network.head.teacher_query.weight).abs().max()
    assert moved > 1e-3


def test_the_weights_moved(found):
    """The other comparisons would also hold if nothing was trained."""
    run = found[1]["zero-1"]
    start = tiny.model(**tiny.STILL).network.state_dict()
    moved = [name for name in start if (run["end"][name] - start[name]).abs().max() > 1e-4]
    assert len(moved) > 0.9 * len([name for name in start if name != "wav2vec2.masked_spec_embed"])
    assert len({round(loss, 4) for loss in run["losses"]}) == STEPS


@pytest.mark.parametrize(("world", "name"), [(1, "accumulated"), (2, "unequal"), (2, "accumulated")])
def test_shares_of_any_size_make_the_step_of_their_union(found, world, name):
    whole, shared = found[1]["zero-1"], found[world][name]
    assert shared["losses"] == pytest.approx(whole["losses"], abs=1e-5)
    same_weights(shared["middle"], whole["middle"])
    torch.testing.assert_close(shared["logits"], whole["logits"], atol=1e-4, rtol=1e-4)


def test_schedule_advances_once_per_step_whatever_the_accumulation(found):
    expected = [OPTIM.lr * make_lr_lambda(OPTIM, STEPS)(step) for step in (0, 5)]
    for world, name in ((1, "zero-1"), (1, "accumulated"), (2, "unequal"), (2, "accumulated")):
        assert found[world][name]["rates"] == pytest.approx(expected), (world, name)


@pytest.mark.parametrize("name", ["resumed", "resumed frozen"])
def test_a_resumed_run_goes_on_bit_for_bit(found, name):
    run = found[2][name]
    losses_whole, weights_whole, rate_whole = run["whole"]
    losses_again, weights_again, rate_again = run["again"]
    assert losses_again == losses_whole
    assert rate_again == rate_whole
    for weight, value in weights_whole.items():
        assert torch.equal(weights_again[weight], value), weight
    assert len({*run["first"], *losses_whole}) == 6


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]),
    ],
)
def test_schedule_by_hand(kind, expected):
    factor = make_lr_lambda(OptimConfig(warmup_ratio=0.2, lr_schedule=kind), 10)
    assert [factor(step) for step in range(11)] == pytest.approx(expected)
    assert factor(50) == pytest.approx(expected[-1])  # later epochs may have a few steps more


def test_cosine_schedule_and_edges():
    factor = make_lr_lambda(OptimConfig(warmup_ratio=0.0, lr_schedule="cosine"), 4)
    assert [factor(step) for step in range(5)] == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0])
    assert make_lr_lambda(OptimConfig(warmup_ratio=0.9, lr_schedule="linear"), 1)(0) == 1  # one step: at the full rate
    assert make_lr_lambda(OptimConfig(warmup_ratio=0.0, lr_schedule="linear"), 0)(0) == 1


def test_parameter_groups_decay_matrices_alone_and_leave_frozen_weights_out():
    model = tiny.model()
    model.network.freeze_feature_encoder()
    decayed, others = build_param_groups(model, OptimConfig(weight_decay=0.3, lr=1e-4))
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert decayed["lr"] == others["lr"] == 1e-4
    assert {parameter.ndim for parameter in others["params"]} == {1}
    assert min(parameter.ndim for parameter in decayed["params"]) == 2
    chosen = {id(parameter) for group in (decayed, others) for parameter in group["params"]}
    assert chosen == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    frozen = {id(parameter) for parameter in model.network.wav2vec2.feature_extractor.parameters()}
    assert frozen and not chosen & frozen


def test_the_head_may_have_a_rate_of_its_own():
    model = tiny.model()
    groups = build_param_groups(model, OptimConfig(lr=1e-5, head_lr=1e-3))
    assert sorted({group["lr"] for group in groups}) == [1e-5, 1e-3] and len(groups) == 4
    fast = {id(parameter) for group in groups if group["lr"] == 1e-3 for parameter in group["params"]}
    head = [*model.network.projector.parameters(), *model.network.classifier.parameters()]
    assert fast == {id(parameter) for parameter in head}
