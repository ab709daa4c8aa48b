"""Test the engines on a GPU: half precision, offload and timing, which differ from the CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import tiny_models as tiny
from support.engine_worker import OBJECTIVE, OPTIM, UTTERANCES, make_batch

from lakd_ray.config import TrainConfig
from lakd_ray.train.engines import build_engine
from lakd_ray.train.flops import peak_flops
from lakd_ray.train.monitoring import StepTimer, peak_memory_mb
from lakd_ray.train.step import compute_losses

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def single_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Create a process group of one rank."""
    store = tmp_path_factory.mktemp("group") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def train(**settings: Any) -> list[float]:
    """Train a few steps and return the losses."""
    engine = build_engine(tiny.model(**tiny.DETERMINISTIC), OPTIM, TrainConfig(gpu=True, **settings), total_steps=STEPS)
    mean_losses = []
    for step in range(STEPS):
        losses = compute_losses(engine.forward, make_batch(step).to(engine.device, engine.dtype), OBJECTIVE)
        engine.backward(losses.loss, UTTERANCES)
        engine.step()
        mean_losses.append(float(losses.loss.detach()) / UTTERANCES)
    engine.close()
    return mean_losses


@pytest.fixture(scope="module")
def expected() -> list[float]:
    """Return the losses of the torch engine in fp32."""
    return train(engine="torch")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_matches_the_torch_engine(expected: list[float], stage: int):
    assert train(zero_stage=stage) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "settings", [{"precision": "bf16"}, {"precision": "fp16"}, {"precision": "bf16", "zero_stage": 3}]
)
@pytest.mark.parametrize("engine", ["deepspeed", "torch"])
def test_half_precision_is_close(expected: list[float], engine: str, settings: dict[str, Any]):
    assert train(engine=engine, **settings) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_does_not_change_the_result(expected: list[float], stage: int):
    assert train(zero_stage=stage, offload_optimizer=True) == pytest.approx(expected, abs=1e-4)


def test_a_saved_state_is_restored_on_the_gpu(tmp_path: Path):
    engine = build_engine(tiny.model(**tiny.DETERMINISTIC), OPTIM, TrainConfig(gpu=True), total_steps=STEPS)
    engine.save(tmp_path)
    before = engine.full_state_dict()[1]
    engine.close()
    engine = build_engine(tiny.model(**tiny.DETERMINISTIC, seed=1), OPTIM, TrainConfig(gpu=True), total_steps=STEPS)
    engine.load(tmp_path)
    for name, value in engine.full_state_dict()[1].items():
        assert torch.equal(value, before[name]), name
    engine.close()


def test_the_peak_of_the_gpu_is_known():
    device = torch.device("cuda")
    peak = peak_flops(device, torch.bfloat16)
    if peak is None:
        pytest.skip(f"the peak is not known for {torch.cuda.get_device_name(device)}")
    assert peak > (peak_flops(device, torch.float32) or 0) > 1e12


def test_phases_of_a_step_are_timed_on_the_device():
    timer = StepTimer(torch.device("cuda"))
    matrix = torch.randn(4096, 4096, device="cuda")
    for _ in range(10):
        matrix = matrix @ matrix / 64
    timer.mark("work")
    timer.mark("nothing")
    seconds = timer.read_and_reset()
    assert seconds["work"] > 10 * seconds["nothing"] and timer.read_and_reset() == {}
    assert peak_memory_mb(torch.device("cuda")) > 64
