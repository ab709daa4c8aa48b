"""Test training with layers that torch compiles."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from support import tiny_models as tiny
from support.engine_steps import OBJECTIVE, OPTIM, UTTERANCES, make_batch

from lakd_ray.config import TrainConfig
from lakd_ray.train.engines import build_engine
from lakd_ray.train.step import compute_losses

pytestmark = [
    pytest.mark.slow,  # compiles forward, backward and evaluation
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # warnings of torch's compiler
]
STEPS = 6


@pytest.fixture(autouse=True)
def single_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Create a process group of one rank, and reset the compiler."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(**settings: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train a few steps on batches of different lengths; return the losses and the weights."""
    engine = build_engine(tiny.model(**tiny.DETERMINISTIC), OPTIM, TrainConfig(**settings), total_steps=STEPS)
    mean_losses = []
    for step in range(STEPS):
        losses = compute_losses(engine.forward, make_batch(step), OBJECTIVE)
        engine.backward(losses.loss, UTTERANCES)
        engine.step()
        mean_losses.append(float(losses.loss.detach()) / UTTERANCES)
    with engine.eval_mode():
        engine.forward(make_batch(0).inputs, make_batch(0).lengths_B)
    weights = engine.full_state_dict()[1]
    engine.close()
    return mean_losses, weights


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_compiled_layers_train_alike_and_are_compiled_once(engine: str):
    expected_losses, expected_weights = train(engine=engine)
    assert torch._dynamo.utils.counters["frames"]["ok"] == 0
    losses, weights = train(engine=engine, compile=True)
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    for name, value in weights.items():
        assert torch.allclose(value, expected_weights[name], atol=1e-4), name
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 2  # training and evaluation, for all lengths
