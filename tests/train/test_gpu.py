"""Test the engines on a GPU: half precision, offload, memory and timing, which differ from the CPU."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import engine_steps
from support import tiny_models as tiny
from support.engine_faults import SHORT, SometimesUsed, train_on_two_gpus, train_with_short_utterance
from support.engine_steps import ENGINES, OBJECTIVE, OPTIM, UTTERANCES, make_batch

from lakd_ray.config import TrainConfig
from lakd_ray.train.engines import build_engine
from lakd_ray.train.engines.base import Engine
from lakd_ray.train.flops import peak_flops
from lakd_ray.train.monitoring import StepTimer, peak_memory_mb, release_memory, reset_peak_memory
from lakd_ray.train.step import compute_losses

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
STEPS = 6
GPU = torch.device("cuda")


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
    engine = make_engine(**settings)
    losses = train_steps(engine, range(STEPS))
    engine.close()
    return losses


def make_engine(seed: int = 0, **settings: Any) -> Engine:
    """Build an engine on the GPU; without TF32, so that engines can be compared."""
    train = TrainConfig.model_validate({"gpu": True, "tf32": False} | settings)
    return build_engine(tiny.model(seed, **tiny.DETERMINISTIC), OPTIM, train, total_steps=STEPS)


def train_steps(engine: Engine, steps: Sequence[int]) -> list[float]:
    """Train steps and return the mean losses."""
    mean_losses = []
    for step in steps:
        losses = compute_losses(engine.forward, make_batch(step).to(engine.device, engine.dtype), OBJECTIVE)
        engine.backward(losses.loss, UTTERANCES)
        engine.step()
        mean_losses.append(float(losses.loss.detach()) / UTTERANCES)
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


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_saved_state_is_restored_on_the_gpu(tmp_path: Path, name: str):
    engine = make_engine(**ENGINES[name])
    train_steps(engine, range(3))
    engine.save(tmp_path)
    expected = train_steps(engine, range(3, 6))
    engine.close()
    engine = make_engine(seed=1, **ENGINES[name])
    engine.load(tmp_path)
    assert train_steps(engine, range(3, 6)) == pytest.approx(expected, abs=1e-5)
    assert_state_is_placed(engine)
    engine.close()


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_state_of_a_different_number_of_gpus_is_restored(tmp_path: Path, stage: int, offload: bool):
    """The state of one rank takes the same path, the universal checkpoint, if it is loaded as that of two."""
    settings = {"zero_stage": stage, "offload_optimizer": offload}
    engine = make_engine(**settings)
    train_steps(engine, range(3))
    engine.save(tmp_path)
    expected = train_steps(engine, range(3, 6))
    engine.close()
    engine = make_engine(seed=1, **settings)
    engine.load(tmp_path, world_size=2)
    assert_state_is_placed(engine)
    assert train_steps(engine, range(3, 6)) == pytest.approx(expected, abs=1e-4)
    engine.close()


def test_a_state_of_the_cpu_is_restored_on_the_gpu(tmp_path: Path):
    engine = make_engine(engine="torch", gpu=False)
    train_steps(engine, range(3))
    engine.save(tmp_path)
    engine.close()
    engine = make_engine(seed=1, engine="torch")
    engine.load(tmp_path)
    assert_state_is_placed(engine)
    train_steps(engine, range(3, 6))
    engine.close()


def assert_state_is_placed(engine: Engine) -> None:
    assert all(group["fused"] for group in engine._optimizer.param_groups)
    assert engine._optimizer.state
    for weight, state in engine._optimizer.state.items():
        assert {value.device for value in state.values()} == {weight.device}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_checkpoints_have_the_weights_of_the_optimizer(stage: int, precision: str):
    engine = make_engine(zero_stage=stage, precision=precision)
    train_steps(engine, range(3))
    weights = engine.full_state_dict()[1]
    assert {value.dtype for value in weights.values()} == {torch.float32}
    if precision == "bf16":  # in fp16 the first steps are skipped until the scale of the loss fits
        assert any((value != value.bfloat16().float()).any() for value in weights.values())
    engine.close()


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_of_sometimes_unused_weights_come_last(stage: int):
    """All ranks must reduce gradients in the same order, whether their utterances use a weight or not."""
    orders = []
    for samples in (2 * SHORT, SHORT):
        model: Any = SometimesUsed(tiny.model(**tiny.DETERMINISTIC))
        engine = build_engine(model, OPTIM, TrainConfig(gpu=True, zero_stage=stage), total_steps=STEPS)
        order: list[str] = []
        for name, weight in model.named_parameters():
            weight.register_post_accumulate_grad_hook(lambda _, name=name, order=order: order.append(name))
        batch = replace(make_batch(0), inputs=torch.randn(UTTERANCES, samples))
        batch = replace(batch, lengths_B=torch.full_like(batch.lengths_B, samples))
        losses = compute_losses(engine.forward, batch.to(engine.device, engine.dtype), OBJECTIVE)
        engine.backward(losses.loss, UTTERANCES)
        orders.append(order)
        engine.close()
    assert orders[0] == orders[1] and "offset" in orders[0][-2:]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weights_that_are_sometimes_unused_are_trained(stage: int):
    expected = train_with_short_utterance(0, engine="torch", gpu=True, tf32=False)
    result = train_with_short_utterance(0, zero_stage=stage, gpu=True, tf32=False)
    assert result.losses == pytest.approx(expected.losses, abs=1e-3)
    torch.testing.assert_close(result.weights["offset"], expected.weights["offset"], atol=1e-4, rtol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_agree_and_one_resumes_their_state(tmp_path: Path):
    """Ranks use different weights in a step; the states of all engines are loaded with half the GPUs."""
    torch.multiprocessing.spawn(train_on_two_gpus, (tmp_path,), nprocs=2)
    short_utterance, losses = torch.load(tmp_path / "results.pt", weights_only=False)
    for name, settings in ENGINES.items():
        for weight, value in short_utterance["torch"].weights.items():
            if not weight.endswith("k_proj.bias"):  # whose gradient is rounding noise
                torch.testing.assert_close(short_utterance[name].weights[weight], value, atol=1e-4, rtol=1e-3)
        model = tiny.model(1, **tiny.DETERMINISTIC)
        engine = engine_steps.make_engine(model, gpu=True, tf32=False, **settings)
        engine.load(tmp_path / name, world_size=2)
        assert_state_is_placed(engine)
        resumed = engine_steps.train_steps(engine, engine_steps.ALL_UTTERANCES, range(3, 6))
        assert resumed == pytest.approx(losses[name], abs=1e-3), name
        engine.close()


@pytest.mark.parametrize("name", list(ENGINES))
def test_the_memory_of_a_run_is_freed(name: str):
    train(**ENGINES[name])  # allocates what the process needs once, such as the workspace of cuBLAS
    release_memory(GPU)
    before = torch.cuda.memory_allocated()
    train(**ENGINES[name])
    release_memory(GPU)
    assert torch.cuda.memory_allocated() - before < 2**20


def test_the_peak_of_memory_is_that_of_the_run():
    block = torch.empty(2**28, dtype=torch.uint8, device=GPU)
    assert peak_memory_mb(GPU) >= 256
    del block
    reset_peak_memory(GPU)
    assert peak_memory_mb(GPU) < 256


def test_tf32_rounds_matrix_products():
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU has no TF32")
    matrix = torch.randn(512, 512, device=GPU, generator=torch.Generator(GPU).manual_seed(0))
    exact = matrix.double() @ matrix.double()
    errors = []
    for tf32 in (False, True):
        engine = make_engine(engine="torch", tf32=tf32)
        errors.append(float(((matrix @ matrix).double() - exact).abs().max()))
        engine.close()
    assert errors[1] > 10 * errors[0]


def test_the_peak_of_the_gpu_is_known():
    peak = peak_flops(GPU, "bf16", tf32=True)
    if peak is None:
        pytest.skip(f"the peak is not known for {torch.cuda.get_device_name(GPU)}")
    tf32_peak, fp32_peak = peak_flops(GPU, "fp32", tf32=True), peak_flops(GPU, "fp32", tf32=False)
    assert tf32_peak is not None and fp32_peak is not None
    assert peak > tf32_peak > fp32_peak > 1e12


def test_phases_of_a_step_are_timed_on_the_device():
    timer = StepTimer(GPU)
    matrix = torch.randn(4096, 4096, device="cuda")
    for _ in range(10):
        matrix = matrix @ matrix / 64
    timer.mark("work")
    timer.mark("nothing")
    seconds = timer.read_and_reset()
    assert seconds["work"] > 10 * seconds["nothing"] and timer.read_and_reset() == {}
    assert peak_memory_mb(GPU) > 64
