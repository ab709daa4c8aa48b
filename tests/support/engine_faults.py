"""Train where ranks, precisions or runs differ: short utterances, overflows, averages in bf16, memory after a run."""

import gc
import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lakd_ray.config import TrainConfig
from lakd_ray.models import ClassifierOutput, EmotionClassifier
from lakd_ray.train.engines import build_engine
from lakd_ray.train.engines.base import Engine
from lakd_ray.train.engines.torch import TorchEngine
from lakd_ray.train.step import TrainBatch, compute_losses
from support import tiny_models as tiny
from support.engine_results import HalfPrecisionAveraging, OverflowResult, StepsResult, Weights
from support.engine_steps import (
    ALL_UTTERANCES,
    ENGINES,
    OBJECTIVE,
    OPTIM,
    STEPS,
    UNEQUAL_SHARES,
    UTTERANCES,
    add_masks,
    full_weights,
    make_batch,
    make_engine,
    model_weights,
    train_steps,
)

SHORT = 1600  # samples, four frames
MASK_FRAMES = 5


class SometimesUsed(nn.Module):
    """A classifier with a weight of its own that it uses for long utterances only."""

    def __init__(self, classifier: EmotionClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.offset = nn.Parameter(torch.zeros(4))

    def forward(self, inputs: Tensor, *arguments: Any) -> ClassifierOutput:
        outputs: ClassifierOutput = self.classifier(inputs, *arguments)
        return outputs if inputs.shape[1] <= SHORT else outputs._replace(logits_BC=outputs.logits_BC + self.offset)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.classifier, name)


def train_with_short_utterance(rank: int, **settings: Any) -> StepsResult:
    """Train with SpecAugment, where the only utterance of the second rank is shorter than a mask."""
    masked = tiny.DETERMINISTIC | {"mask_time_prob": 0.5, "mask_time_length": MASK_FRAMES}
    engine = make_engine(SometimesUsed(tiny.model(**masked)), **settings)  # type: ignore[arg-type]  # like a classifier
    losses = []
    for step in range(3):
        batch = make_batch(step, range(UTTERANCES - 1) if rank == 0 else [UTTERANCES - 1])
        if rank == 1:
            batch = _shorten(batch)
        batch = add_masks(engine, batch, step).to(engine.device, engine.dtype)
        loss = compute_losses(engine.forward, batch, OBJECTIVE).loss
        engine.backward(loss, UTTERANCES)
        engine.step()
        losses.append(float(loss.detach()))
    result = StepsResult(losses, full_weights(engine), engine.learning_rate)
    engine.close()
    return result


def _shorten(batch: TrainBatch) -> TrainBatch:
    return replace(batch, inputs=batch.inputs[:, :SHORT], lengths_B=torch.full_like(batch.lengths_B, SHORT))


def overflow_on_one_rank(rank: int) -> list[OverflowResult]:
    """Train with the torch engine and the loss scaling of fp16, on CPUs; return what each rank has."""
    settings = TrainConfig(engine="torch", gpu=False).model_copy(
        update={"precision": "fp16"}
    )  # the configuration demands GPUs
    engine = build_engine(tiny.model(**tiny.DETERMINISTIC), OPTIM, settings, total_steps=STEPS)
    assert isinstance(engine, TorchEngine)
    scales, weights = [], []
    for step in range(3):
        loss = compute_losses(engine.forward, make_batch(step, UNEQUAL_SHARES[rank][0]), OBJECTIVE).loss
        engine.backward(loss * (float("inf") if (step, rank) == (1, 1) else 1), UTTERANCES)
        engine.step()
        scales.append(engine._scaler.get_scale())
        weights.append(model_weights(engine))
    engine.close()
    results: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(results, OverflowResult(scales, weights))
    return results


def average_in_half_precision(folder: Path, **settings: Any) -> HalfPrecisionAveraging:
    """Train two ranks in bf16 with averaged weights, evaluate, save, and load the state again."""
    folder.mkdir(exist_ok=True)
    rank = dist.get_rank()
    engine = _make_averaging_engine(**settings)
    step_weights = [_optimizer_weights(engine)]
    for step in range(3):
        train_steps(engine, UNEQUAL_SHARES[rank], [step])
        step_weights.append(_optimizer_weights(engine))
    with engine.eval_mode():
        eval_weights = model_weights(engine)
    weights_after_eval = model_weights(engine)
    saved_average = full_weights(engine)
    engine.save(folder)
    engine.close()
    dist.barrier()
    engine = _make_averaging_engine(seed=3, **settings)
    engine.load(folder)
    restored_average = full_weights(engine)
    engine.close()
    return HalfPrecisionAveraging(step_weights, eval_weights, weights_after_eval, saved_average, restored_average)


def _optimizer_weights(engine: Engine) -> Weights:
    return {name.removeprefix("network."): value.clone() for name, value in engine._gather_weights().items()}


def load_average(folder: Path, **settings: Any) -> Weights:
    """Return the averaged weights from a state that two ranks saved."""
    engine = _make_averaging_engine(seed=3, **settings)
    engine.load(folder, world_size=2)
    average = full_weights(engine)
    engine.close()
    return average


def _make_averaging_engine(seed: int = 0, **settings: Any) -> Engine:
    optim = OPTIM.model_copy(update={"ema_decay": 0.5})
    return make_engine(tiny.model(seed, **tiny.DETERMINISTIC), optim, precision="bf16", **settings)


def list_alive_after_close(**settings: Any) -> list[str]:
    """Train a step; return what is still referenced after the engine is closed and garbage is collected."""
    linear = nn.functional.linear
    references = _train_and_close(**settings)
    gc.collect()
    alive = [name for name, reference in references.items() if reference() is not None]
    return alive + ([] if nn.functional.linear is linear else ["DeepSpeed's torch.nn.functional.linear"])


def _train_and_close(**settings: Any) -> dict[str, "weakref.ref[Any]"]:
    model = tiny.model(**tiny.DETERMINISTIC)
    engine = make_engine(model, **settings)
    train_steps(engine, ALL_UTTERANCES, range(2))
    references: dict[str, weakref.ref[Any]] = {"model": weakref.ref(model), "engine": weakref.ref(engine)}
    references |= {name: weakref.ref(weight) for name, weight in model.named_parameters()}
    for number, state in enumerate(engine._optimizer.state.values()):
        references |= {f"optimizer state {number} {name}": weakref.ref(value) for name, value in state.items()}
    engine.close()
    return references


def train_on_two_gpus(rank: int, folder: Path) -> None:
    """Run one of two ranks on GPUs, which `torch.multiprocessing.spawn` starts; the first one stores the results.

    Results are those of `train_with_short_utterance` by name of the engine, and the losses of three steps after a
    state was saved in a folder of the engine's name.
    """
    os.environ |= {"CUDA_VISIBLE_DEVICES": str(rank), "LOCAL_RANK": "0"}  # before CUDA is initialized
    store = f"file://{folder / 'store'}"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=store, rank=rank, world_size=2)
    short_utterance, losses = {}, {}
    for name, settings in ENGINES.items():
        short_utterance[name] = train_with_short_utterance(rank, gpu=True, tf32=False, **settings)
        engine = make_engine(gpu=True, tf32=False, **settings)
        train_steps(engine, UNEQUAL_SHARES[rank], range(3))
        (folder / name).mkdir(exist_ok=True)
        engine.save(folder / name)
        losses[name] = train_steps(engine, UNEQUAL_SHARES[rank], range(3, 6))
        engine.close()
    if rank == 0:
        torch.save((short_utterance, losses), folder / "results.pt")
    dist.barrier()
    dist.destroy_process_group()
