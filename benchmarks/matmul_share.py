"""Fine-tuning and teacher logits at wav2vec2-base size, as a share of the measured rate of matrix products.

    python benchmarks/matmul_share.py [--repeats 3] [--small]

The work is what the task needs, `lakd_ray.train.flops`, on the audio with its padding: a trained part counts three
times its forward pass, the frozen feature encoder once, for all teachers together. Batches are planned as in training,
decoded and in pinned memory before the time starts, so that the shares are those of the step alone. SpecAugment is on.
A pass over all batches comes before the passes that count.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

from ceilings import PRECISIONS, matmul_ceiling
from common import BASE, RATE, SMALL, has_gpu, peak_memory_gib, reset_memory, single_rank, timed
from figures import spread
from lakd_ray.config import BatchConfig, OptimConfig, TrainConfig
from lakd_ray.data.provenance import Provenance
from lakd_ray.inference.backends import TorchBackend, TorchBf16Backend
from lakd_ray.inference.predictor import Predictor, predict_with_models
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import CheckpointMetadata, EmotionClassifier, pad_batch
from lakd_ray.train.engines import build_engine
from lakd_ray.train.flops import flops_per_audio_second
from lakd_ray.train.step import Objective, TrainBatch, compute_losses
from steps import LARGE_BATCH
from task import Task

FINE_TUNING_AIM = 0.45
TEACHERS_AIM = 0.60
Attempt = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Work:
    """Floating-point operations that were done, the seconds of each repeat, and the peak memory."""

    flops: float
    seconds: list[float]
    memory_gib: float

    def shares(self, ceiling_tflops: float) -> list[float]:
        """Return the rate of each repeat as a share of a ceiling."""
        return [self.flops / seconds / 1e12 / ceiling_tflops for seconds in self.seconds]


def train_batches(task: Task, batch: BatchConfig | None, model: EmotionClassifier) -> list[TrainBatch]:
    """Return the planned batches of an epoch with the masks of SpecAugment, in pinned memory if there is a GPU."""
    batches = []
    for rows in task.planned_batches(batch):
        wave_BT, lengths_B = pad_batch([task.waves[row] for row in rows])
        languages = [task.languages[row] for row in rows]
        masks = model.plan_spec_augment(model.count_frames(lengths_B).tolist(), [(row,) for row in rows])
        train_batch = TrainBatch(wave_BT, lengths_B, task.labels_N[rows], languages, spec_augment=masks)
        batches.append(train_batch.pin_memory() if has_gpu() else train_batch)
    return batches


def padded_seconds(batches: Sequence[TrainBatch]) -> float:
    """Return the audio seconds of batches, padding included."""
    return sum(batch.inputs.shape[0] * batch.inputs.shape[1] for batch in batches) / RATE


def fine_tune(task: Task, batch: BatchConfig | None, repeats: int, **settings: Any) -> Work:
    """Fine-tune from waves with the labels, in bf16; the feature encoder is frozen."""
    model = task.network(0)
    batches = train_batches(task, batch, model)
    flops = flops_per_audio_second(model, features_cached=False) * padded_seconds(batches)
    train = TrainConfig.model_validate({"gpu": has_gpu(), "precision": "bf16"} | settings)
    engine = build_engine(model, OptimConfig(lr=3e-5), train, total_steps=(repeats + 1) * len(batches))

    def epoch() -> None:
        for host_batch in batches:
            train_batch = host_batch.to(engine.device, engine.dtype)
            losses = compute_losses(engine.forward, train_batch, Objective())
            engine.backward(losses.loss, len(train_batch.languages))
            engine.step()

    with closing(engine):
        reset_memory()
        print(f"first epoch, not counted: {timed(epoch):.1f} s", flush=True)
        return Work(flops, [timed(epoch) for _ in range(repeats)], peak_memory_gib())


def teacher_logits(task: Task, precision: str, repeats: int) -> Work:
    """Compute the logits of three teachers from waves, as the library does in one pass over the audio."""
    backend = {"fp32": TorchBackend, "bf16": TorchBf16Backend}[precision]
    metadata = CheckpointMetadata("teacher", PAPER_EMOTIONS, ("en",), Provenance(), {})
    networks = [task.network(seed) for seed in (1, 2, 3)]
    flops = flops_per_audio_second(networks[0], features_cached=False)
    queries = {f"teacher {i}": (Predictor(backend(network), metadata), None) for i, network in enumerate(networks)}
    batches = [list(rows) for rows in task.planned_batches()]
    padded = sum(max(len(task.waves[row]) for row in rows) * len(rows) for rows in batches) / RATE

    def one_pass() -> None:
        for rows in batches:
            predict_with_models([task.waves[row].numpy() for row in rows], queries)

    reset_memory()
    print(f"first pass, not counted: {timed(one_pass):.1f} s", flush=True)
    return Work(flops * padded, [timed(one_pass) for _ in range(repeats)], peak_memory_gib())


def measure(add: Callable[..., Any], attempt: Attempt, *, small: bool, repeats: int) -> None:
    """Measure everything; `add` takes the name of a figure, its values and options, `attempt` may suppress errors."""
    ceilings = {precision: max(matmul_ceiling(precision, small)) for precision in PRECISIONS}
    for precision, tflops in ceilings.items():
        add(f"{precision} matrix product in this process, TFLOP/s", [tflops])
    task = Task(16 if small else 256, SMALL if small else BASE, batch=16)
    batches = {"batches of 16": None, "batches of 64": LARGE_BATCH}
    for size, batch in batches.items():
        for compiled in (False, True) if batch is None or not small else (False,):
            name = f"fine-tuning in bf16, {size}{', compiled' if compiled else ''}, share of bf16"
            with attempt(name):
                work = fine_tune(task, batch, repeats, compile=compiled)
                options = {"digits": 3, "aim": FINE_TUNING_AIM, "memory_gib": work.memory_gib}
                add(name, work.shares(ceilings["bf16"]), **options)
    for precision in ("fp32", "bf16"):
        name = f"logits of three teachers in {precision}, share of bf16"
        with attempt(name):
            work = teacher_logits(task, precision, repeats)
            options = {"digits": 3, "aim": TEACHERS_AIM, "memory_gib": work.memory_gib}
            add(name, work.shares(ceilings["bf16"]), **options)


def main() -> None:
    """Parse the arguments and print all shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="use a tiny network, to test the benchmark")
    options = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", "0")

    def show(name: str, values: Sequence[float], digits: int = 1, **_: Any) -> None:
        print(f"{name}: {spread(values, digits)}", flush=True)

    with single_rank():
        measure(show, lambda _: nullcontext(), small=options.small, repeats=options.repeats)


if __name__ == "__main__":
    main()
