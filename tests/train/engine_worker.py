"""One rank for the engine's tests: real DeepSpeed over gloo. Runs every scenario of its world size, since a process
costs far more than a scenario; rank 0 leaves the results as `<out>/world-<n>.pt`.

    engine_worker.py RANK WORLD OUT
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import loop_scenario
import numpy as np
import tiny
import torch
import torch.distributed as dist
from torch import Tensor

from lakd_ray.config import DistillLoss, Optim, Train
from lakd_ray.models import EmotionClassifier, pad
from lakd_ray.train import state as states
from lakd_ray.train.engine import Engine
from lakd_ray.train.step import PARTS, Batch, Objective, losses

STEPS = 10
UTTERANCES = 6  # in each step
OPTIM = Optim(lr=1e-3, clip=0.1, warmup=0.3, schedule="linear", weight_decay=0.1)
LOSS = DistillLoss(weighting="language")
TEACHERS = ("en", "fi", "fr")
PLAIN = Objective(LOSS, TEACHERS)
AWARE = Objective(DistillLoss(weighting="attention", lam=0.3), TEACHERS, identify=0.1)


def batch(step: int, chosen: Sequence[int] = range(UTTERANCES)) -> Batch:
    """Some of the utterances of a step."""
    random = np.random.default_rng(step)
    lengths = random.integers(2000, 6000, UTTERANCES)
    waves = [torch.from_numpy(random.standard_normal(length).astype(np.float32)) for length in lengths]
    labels_B = torch.from_numpy(random.integers(0, 4, UTTERANCES))
    teachers_BKC = torch.from_numpy(3 * random.standard_normal((UTTERANCES, 3, 4)).astype(np.float32))
    index = list(chosen)
    wave_BT, lengths_B = pad([waves[number] for number in index])
    languages = [TEACHERS[number % 3] for number in index]
    languages_B = torch.tensor([number % 3 for number in index])
    return Batch(wave_BT, lengths_B, labels_B[index], languages, teachers_BKC[index], languages_B)


def aware(*, unknown_share: float = 0.0, **changes: Any) -> EmotionClassifier:
    """A language-aware student; where its languages are hidden, a step is no function of its batch."""
    return tiny.aware(head=tiny.AWARE.model_copy(update={"unknown_share": unknown_share}), **changes)


def steps(
    engine: Engine, shares: Sequence[Sequence[int]], numbers: Sequence[int], objective: Objective = PLAIN
) -> list[float]:
    """Optimizer steps on this rank's shares of each; returns the mean losses over all ranks."""
    means = []
    for number in numbers:
        total = torch.zeros(len(PARTS), dtype=torch.float64)
        for share in shares:
            parts = losses(engine.forward, batch(number, share), objective)
            engine.backward(parts.loss, UTTERANCES)
            engine.step()
            total += parts.detached()
        dist.all_reduce(total)
        means.append(float(total[0]) / UTTERANCES)
    return means


def start(model: EmotionClassifier | None = None, **train: Any) -> Engine:
    return Engine(model or tiny.model(**tiny.STILL), OPTIM, Train(**train), steps=STEPS)


def run(
    shares: Sequence[Sequence[int]],
    model: EmotionClassifier | None = None,
    objective: Objective = PLAIN,
    **train: Any,
) -> dict[str, Any]:
    """Losses of ten steps, and the weights after five and ten."""
    engine = start(model, accumulation=len(shares), **train)
    rates = [engine.learning_rate]
    found = steps(engine, shares, range(5), objective)
    rates.append(engine.learning_rate)
    middle = _weights(engine)
    found += steps(engine, shares, range(5, STEPS), objective)
    with engine.evaluating():
        probe = batch(99)
        logits_BC = engine.forward(probe.inputs, probe.lengths_B, probe.languages_B).logits_BC.clone()
    result = {"losses": found, "middle": middle, "end": _weights(engine), "rates": rates, "logits": logits_BC}
    engine.close()
    return result


def resumed(folder: Path, rank: int, shares: Sequence[Sequence[int]], **train: Any) -> dict[str, Any]:
    """The same run with dropout, SpecAugment and hidden languages, uninterrupted and in two parts."""
    folder.mkdir(exist_ok=True)
    states.seed_generators(7, rank)
    engine = start(aware(unknown_share=0.5, mask_time_length=2), **train)
    first = steps(engine, shares, range(3), AWARE)
    engine.save(folder)
    states.save_generators(folder / f"generators-{rank}.pt")
    whole = steps(engine, shares, range(3, 6), AWARE)
    whole_weights, whole_rate = _weights(engine), engine.learning_rate
    engine.close()
    dist.barrier()
    states.seed_generators(8, rank)
    engine = start(aware(unknown_share=0.5, seed=1, mask_time_length=2), **train)
    engine.load(folder)
    states.load_generators(folder / f"generators-{rank}.pt")
    again = steps(engine, shares, range(3, 6), AWARE)
    result = {
        "first": first,
        "whole": (whole, whole_weights, whole_rate),
        "again": (again, _weights(engine), engine.learning_rate),
    }
    engine.close()
    return result


def _weights(engine: Engine) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in engine.weights()[1].items()}


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
    else:
        results["unequal"] = run([[[0, 1, 2, 3], [4, 5]][rank]])
        results["accumulated"] = run([[[0, 1], [2]], [[3], [4, 5]]][rank])
        results["aware"] = run([[[0, 1], [2]], [[3], [4, 5]]][rank], aware(**tiny.STILL), AWARE)
        results["resumed"] = resumed(out / "resume", rank, [[[0, 1, 2, 3], [4, 5]][rank]])
        (out / "loop").mkdir(exist_ok=True)
        loops: list[Any] = [None] * world
        dist.all_gather_object(loops, loop_scenario.run(out / "loop", rank, world))
        results["loop"], results["loop of rank 1"] = loops
    if rank == 0:
        torch.save(results, out / f"world-{world}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
