"""One rank for the engine's tests: real DeepSpeed over gloo. Runs every scenario of its world size, since a process
costs far more than a scenario; rank 0 leaves the results as `<out>/world-<n>.pt`.

    engine_worker.py RANK WORLD OUT
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lakd_ray.config import DistillLossConfig, OptimConfig, TrainConfig
from lakd_ray.models import EmotionClassifier, pad_batch
from lakd_ray.train import checkpointing
from lakd_ray.train.engines import build_engine
from lakd_ray.train.engines.base import Engine
from lakd_ray.train.step import LOSS_NAMES, Objective, TrainBatch, compute_losses
from support import loop_scenario
from support import tiny_models as tiny

STEPS = 10
LONG = 50
UTTERANCES = 6  # in each step
OPTIM = OptimConfig(lr=1e-3, max_grad_norm=0.1, warmup_ratio=0.3, lr_schedule="linear", weight_decay=0.1)
LOSS = DistillLossConfig(weighting="language")
TEACHERS = ("en", "fi", "fr")
PLAIN = Objective(LOSS, TEACHERS)
ENGINES: dict[str, dict[str, Any]] = {
    "torch": {"engine": "torch"},
    **{f"zero-{stage}": {"zero_stage": stage} for stage in (0, 1, 2, 3)},
}
AWARE = Objective(DistillLossConfig(weighting="attention", lam=0.3), TEACHERS, language_id_loss_weight=0.1)


def batch(step: int, chosen: Sequence[int] = range(UTTERANCES)) -> TrainBatch:
    """Some of the utterances of a step."""
    random = np.random.default_rng(step)
    lengths = random.integers(2000, 6000, UTTERANCES)
    waves = [torch.from_numpy(random.standard_normal(length).astype(np.float32)) for length in lengths]
    labels_B = torch.from_numpy(random.integers(0, 4, UTTERANCES))
    teachers_BKC = torch.from_numpy(3 * random.standard_normal((UTTERANCES, 3, 4)).astype(np.float32))
    index = list(chosen)
    wave_BT, lengths_B = pad_batch([waves[number] for number in index])
    languages = [TEACHERS[number % 3] for number in index]
    languages_B = torch.tensor([number % 3 for number in index])
    return TrainBatch(wave_BT, lengths_B, labels_B[index], languages, teachers_BKC[index], languages_B)


def aware(*, language_dropout: float = 0.0, **changes: Any) -> EmotionClassifier:
    """A language-aware student; where its languages are hidden, a step is no function of its batch."""
    return tiny.aware(head=tiny.AWARE.model_copy(update={"language_dropout": language_dropout}), **changes)


def steps(
    engine: Engine, shares: Sequence[Sequence[int]], numbers: Sequence[int], objective: Objective = PLAIN
) -> list[float]:
    """Optimizer steps on this rank's shares of each; returns the mean losses over all ranks."""
    means = []
    for number in numbers:
        total = torch.zeros(len(LOSS_NAMES), dtype=torch.float64)
        for share in shares:
            parts = compute_losses(engine.forward, batch(number, share), objective)
            engine.backward(parts.loss, UTTERANCES)
            engine.step()
            total += parts.to_tensor()
        dist.all_reduce(total)
        means.append(float(total[0]) / UTTERANCES)
    return means


def start(model: EmotionClassifier | None = None, optim: OptimConfig = OPTIM, **train: Any) -> Engine:
    return build_engine(model or tiny.model(**tiny.STILL), optim, TrainConfig(**train), total_steps=STEPS)


def run(
    shares: Sequence[Sequence[int]],
    model: EmotionClassifier | None = None,
    objective: Objective = PLAIN,
    **train: Any,
) -> dict[str, Any]:
    """Losses of ten steps, and the weights after five and ten."""
    engine = start(model, gradient_accumulation_steps=len(shares), **train)
    rates = [engine.learning_rate]
    found = steps(engine, shares, range(5), objective)
    rates.append(engine.learning_rate)
    middle = _weights(engine)
    found += steps(engine, shares, range(5, STEPS), objective)
    with engine.eval_mode():
        probe = batch(99)
        logits_BC = engine.forward(probe.inputs, probe.lengths_B, probe.languages_B).logits_BC.clone()
    result = {"losses": found, "middle": middle, "end": _weights(engine), "rates": rates, "logits": logits_BC}
    engine.close()
    return result


def resumed(
    folder: Path, rank: int, shares: Sequence[Sequence[int]], *, frozen: bool = False, **train: Any
) -> dict[str, Any]:
    """The same run with dropout, SpecAugment and hidden languages, uninterrupted and in two parts."""
    folder.mkdir(exist_ok=True)
    checkpointing.seed_rng(7, rank)
    network = aware(language_dropout=0.5, mask_time_length=2)
    network.backbone.feature_encoder.requires_grad_(not frozen)
    engine = start(network, **train)
    first = steps(engine, shares, range(3), AWARE)
    engine.save(folder)
    checkpointing.save_rng_state(folder / f"generators-{rank}.pt")
    whole = steps(engine, shares, range(3, 6), AWARE)
    whole_weights, whole_rate = _weights(engine), engine.learning_rate
    engine.close()
    dist.barrier()
    checkpointing.seed_rng(8, rank)
    network = aware(language_dropout=0.5, seed=0 if frozen else 1, mask_time_length=2)  # what is frozen is not saved
    network.backbone.feature_encoder.requires_grad_(not frozen)
    engine = start(network, **train)
    engine.load(folder)
    checkpointing.load_rng_state(folder / f"generators-{rank}.pt")
    again = steps(engine, shares, range(3, 6), AWARE)
    result = {
        "first": first,
        "whole": (whole, whole_weights, whole_rate),
        "again": (again, _weights(engine), engine.learning_rate),
    }
    engine.close()
    return result


def equal(shares: Sequence[Sequence[int]], **train: Any) -> list[float]:
    """Losses of fifty steps."""
    engine = start(**train)
    found = steps(engine, shares, range(LONG))
    engine.close()
    return found


def averaged(folder: Path, **train: Any) -> dict[str, Any]:
    """Weights after every step, their average as the engine gives it, and the average after a resumption."""
    folder.mkdir(exist_ok=True)
    optim = OPTIM.model_copy(update={"ema_decay": 0.5, "head_lr": 1e-2})
    engine = start(optim=optim, **train)
    each = []
    for step in range(3):
        steps(engine, [range(UTTERANCES)], [step])
        each.append({name: value.detach().clone() for name, value in engine._model.network.named_parameters()})
    with engine.eval_mode():
        judged = {name: value.clone() for name, value in engine._model.network.named_parameters()}
    after = {name: value.detach().clone() for name, value in engine._model.network.named_parameters()}
    engine.save(folder)
    mean = _weights(engine)
    engine.close()
    engine = start(tiny.model(**tiny.STILL, seed=3), optim, **train)
    engine.load(folder)
    result = {"each": each, "judged": judged, "after": after, "mean": mean, "again": _weights(engine)}
    engine.close()
    return result


def elsewhere(folder: Path, rank: int, world: int, **train: Any) -> dict[str, Any]:
    """Saved by two ranks, or gone on with by one."""
    folder.mkdir(exist_ok=True, parents=True)
    engine = start(**train)
    if world == 2:
        share = [[[0, 1, 2, 3], [4, 5]][rank]]
        steps(engine, share, range(3))
        engine.save(folder)
        result = {"losses": steps(engine, share, range(3, 6)), "weights": _weights(engine)}
    else:
        engine.load(folder, world_size=2)
        result = {"losses": steps(engine, [range(UTTERANCES)], range(3, 6)), "weights": _weights(engine)}
    engine.close()
    return result


def _weights(engine: Engine) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in engine.full_state_dict()[1].items()}


def _wait_for(file: Path) -> None:
    """The two ranks are other processes."""
    deadline = time.monotonic() + 200
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file} never came")
        time.sleep(0.1)


def main(rank: int, world: int, out: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{out / f'store-{world}'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    union = [range(UTTERANCES)]
    results: dict[str, Any] = {}
    if world == 1:
        for stage in (0, 1, 2):
            results[f"zero-{stage}"] = run(union, zero_stage=stage)
            results[f"aware zero-{stage}"] = run(union, aware(**tiny.STILL), AWARE, zero_stage=stage)
        results["accumulated"] = run([[0, 1, 2, 3], [4, 5]])
        results["recomputed"] = run(union, gradient_checkpointing=True)
        results["averaged"] = averaged(out / "averaged", zero_stage=2)
        results["equal"] = {name: equal(union, **train) for name, train in ENGINES.items()}
        _wait_for(out / "saved-by-two")
        for name, train in ENGINES.items():
            results[f"elsewhere {name}"] = elsewhere(out / "elsewhere" / name, rank, world, **train)
        results["fewer"] = loop_scenario.go_on_alone(out / "loop")
    else:
        for name, train in ENGINES.items():
            results[f"elsewhere {name}"] = elsewhere(out / "elsewhere" / name, rank, world, **train)
        (out / "loop").mkdir(exist_ok=True)
        loops: list[Any] = [None] * world
        dist.all_gather_object(loops, loop_scenario.run(out / "loop", rank, world))
        results["loop"], results["loop of rank 1"] = loops
        loop_scenario.leave_for_one(out / "loop", rank, world)
        dist.barrier()
        (out / "saved-by-two").touch()
        results["equal"] = {name: equal([[[0, 1, 2, 3], [4, 5]][rank]], **train) for name, train in ENGINES.items()}
        results["unequal"] = run([[[0, 1, 2, 3], [4, 5]][rank]])
        results["accumulated"] = run([[[0, 1], [2]], [[3], [4, 5]]][rank])
        results["aware"] = run([[[0, 1], [2]], [[3], [4, 5]]][rank], aware(**tiny.STILL), AWARE)
        results["resumed"] = resumed(out / "resume", rank, [[[0, 1, 2, 3], [4, 5]][rank]])
        results["resumed frozen"] = resumed(out / "frozen", rank, [[[0, 1, 2, 3], [4, 5]][rank]], frozen=True)
    if rank == 0:
        torch.save(results, out / f"world-{world}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
