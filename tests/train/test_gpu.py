"""The engines on a GPU: half precision, offload, timing. Everything else is the same code as on the CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import tiny_models as tiny
from support.engine_worker import OPTIM, PLAIN, UTTERANCES, batch

from lakd_ray.config import TrainConfig
from lakd_ray.train.engines import build_engine
from lakd_ray.train.flops import peak_flops
from lakd_ray.train.monitoring import StepTimer, peak_memory_mb
from lakd_ray.train.step import compute_losses

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one."""
    store = tmp_path_factory.mktemp("group") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def trained(**train: Any) -> list[float]:
    """Losses of a few steps."""
    engine = build_engine(tiny.model(**tiny.STILL), OPTIM, TrainConfig(gpu=True, **train), total_steps=STEPS)
    found = []
    for step in range(STEPS):
        parts = compute_losses(engine.forward, batch(step).to(engine.device, engine.dtype), PLAIN)
        engine.backward(parts.loss, UTTERANCES)
        engine.step()
        found.append(float(parts.loss.detach()) / UTTERANCES)
    engine.close()
    return found


@pytest.fixture(scope="module")
def plain() -> list[float]:
    return trained(engine="torch")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stages_are_the_plain_engine(plain: list[float], stage: int):
    assert trained(zero_stage=stage) == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize(
    "train", [{"precision": "bf16"}, {"precision": "fp16"}, {"precision": "bf16", "zero_stage": 3}]
)
@pytest.mark.parametrize("engine", ["deepspeed", "torch"])
def test_half_precision_is_near(plain: list[float], engine: str, train: dict[str, Any]):
    assert trained(engine=engine, **train) == pytest.approx(plain, abs=0.05)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_changes_nothing(plain: list[float], stage: int):
    assert trained(zero_stage=stage, offload_optimizer=True) == pytest.approx(plain, abs=1e-4)


def test_a_saved_state_comes_back_to_the_gpu(tmp_path: Path):
    engine = build_engine(tiny.model(**tiny.STILL), OPTIM, TrainConfig(gpu=True), total_steps=STEPS)
    engine.save(tmp_path)
    before = engine.full_state_dict()[1]
    engine.close()
    engine = build_engine(tiny.model(**tiny.STILL, seed=1), OPTIM, TrainConfig(gpu=True), total_steps=STEPS)
    engine.load(tmp_path)
    for name, value in engine.full_state_dict()[1].items():
        assert torch.equal(value, before[name]), name
    engine.close()


def test_what_the_gpu_could_do_is_known():
    device = torch.device("cuda")
    peak = peak_flops(device, torch.bfloat16)
    if peak is None:
        pytest.skip(f"not known of {torch.cuda.get_device_name(device)}")
    assert peak > (peak_flops(device, torch.float32) or 0) > 1e12


def test_parts_of_a_step_are_timed_on_the_device():
    watch = StepTimer(torch.device("cuda"))
    one = torch.randn(4096, 4096, device="cuda")
    for _ in range(10):
        one = one @ one / 64
    watch.mark("work")
    watch.mark("nothing")
    spent = watch.read_and_reset()
    assert spent["work"] > 10 * spent["nothing"] and watch.read_and_reset() == {}
    assert peak_memory_mb(torch.device("cuda")) > 64
