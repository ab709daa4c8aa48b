"""Layers compiled by torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from support import tiny_models as tiny
from support.engine_worker import OPTIM, PLAIN, UTTERANCES, batch

from lakd_ray.config import TrainConfig
from lakd_ray.train.engines import build_engine
from lakd_ray.train.step import compute_losses

pytestmark = [
    pytest.mark.slow,  # the compiler is started for forward, backward and evaluation
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # torch's own, of compiling
]
STEPS = 6


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of one, and nothing compiled yet."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(**train: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of a few steps on batches of different lengths, and the weights then."""
    engine = build_engine(tiny.model(**tiny.STILL), OPTIM, TrainConfig(**train), total_steps=STEPS)
    found = []
    for step in range(STEPS):
        parts = compute_losses(engine.forward, batch(step), PLAIN)
        engine.backward(parts.loss, UTTERANCES)
        engine.step()
        found.append(float(parts.loss.detach()) / UTTERANCES)
    with engine.eval_mode():
        engine.forward(batch(0).inputs, batch(0).lengths_B)
    weights = engine.full_state_dict()[1]
    engine.close()
    return found, weights


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_compiled_layers_learn_alike_and_are_compiled_once(engine: str):
    plain = trained(engine=engine)
    assert torch._dynamo.utils.counters["frames"]["ok"] == 0
    found = trained(engine=engine, compile=True)
    assert found[0] == pytest.approx(plain[0], abs=1e-5)
    for name, value in found[1].items():
        assert torch.allclose(value, plain[1][name], atol=1e-4), name
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 2  # training and evaluation, whatever the length
