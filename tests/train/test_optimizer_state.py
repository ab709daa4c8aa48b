"""Test that a loaded optimizer state is usable on the device of the weights, with the options of this process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models as tiny
from support.engine_steps import OPTIM, make_engine
from torch import nn

from lakd_ray.train.engines.base import Engine
from lakd_ray.train.engines.optimizer import place_optimizer_state


def test_every_state_is_on_the_device_of_its_weight():
    """Meta tensors stand for a GPU, with a step number on the CPU that two weights share, as DeepSpeed loads it."""
    weights = [nn.Parameter(torch.empty(3, device="meta")), nn.Parameter(torch.empty(2, device="meta"))]
    optimizer = torch.optim.AdamW(weights, fused=True)
    step = torch.tensor(7.0)
    for weight in weights:
        optimizer.state[weight] = {"step": step, "exp_avg": torch.zeros(weight.shape), "exp_avg_sq": weight.detach()}
    place_optimizer_state(optimizer)
    for weight, state in optimizer.state.items():
        assert {value.device for value in state.values()} == {weight.device}
    first, second = (state["step"] for state in optimizer.state.values())
    assert first is not second


def test_a_shared_step_number_counts_once_for_each_weight():
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.AdamW(weights, fused=True)
    step = torch.tensor(7.0)
    for weight in weights:
        optimizer.state[weight] = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")} | {
            "step": step
        }
        weight.grad = torch.ones_like(weight)
    place_optimizer_state(optimizer)
    optimizer.step()
    assert [float(state["step"]) for state in optimizer.state.values()] == [8.0, 8.0]


def test_the_options_of_the_optimizer_are_those_of_this_process(single_rank: None, tmp_path: Path):
    """A state that was saved on a different device has its options, which would replace the fused kernel."""
    engine = make_engine(tiny.model(), OPTIM, engine="torch")
    engine._optimizer.param_groups[0] |= {"fused": None, "foreach": False, "weight_decay": 9.0}
    engine.save(tmp_path)
    engine.close()
    engine = make_engine(tiny.model(), OPTIM, engine="torch")
    expected = options(engine)
    engine.load(tmp_path)
    assert options(engine) == expected and expected[0]["fused"]
    engine.close()


def options(engine: Engine) -> list[dict[str, Any]]:
    groups = engine._optimizer.param_groups
    return [{name: value for name, value in group.items() if name != "params"} for group in groups]


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_set_while_an_engine_is_open(single_rank: None, tf32: bool):
    def enabled() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = enabled()
    engine = make_engine(tiny.model(), OPTIM, engine="torch", tf32=tf32)
    assert enabled() == (tf32, tf32)
    engine.close()
    assert enabled() == before
