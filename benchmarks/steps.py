"""Speed of a multi-teacher epoch at wav2vec2-base size, compared with the reference code and with Trainer. No Ray.

    python benchmarks/steps.py [--utterances 64] [--repeats 2] [--batch 16] [--small]

The input is noise with lengths like those of IEMOCAP (log-normal, mean 4.5 s, cut at 20 s), the weights are random;
speed depends on neither. The variants take turns in each repeat; speeds are audio seconds per second of the complete
epoch, as median and range. On a GPU, each variant first trains an epoch that is not counted. Trainer needs accelerate:
pip install -e ".[bench]".

    reference    a faithful copy of its step: three live teachers in training mode, random batches of 16 padded to the
                 longest, no mask, everything in fp32, the loss and the batch's weights as in its code
    trainer      Hugging Face Trainer, group_by_length, bf16 (as implemented for this device), three frozen teachers in
                 eval mode in the step, plain KL: the strongest simple baseline
    + ...        from the reference's step to this project's, one optimization at a time

Caches are part of this project's time: teacher logits and the outputs of the feature encoder are computed once, and
their time is divided by 20 epochs. `--small` uses a tiny network, to test the benchmark itself.
"""

import argparse
import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import (
    BASE,
    SMALL,
    device,
    has_gpu,
    peak_memory_gib,
    reset_memory,
    single_rank,
    timed,
    without_launcher,
)
from lakd_ray.config import BatchConfig, DistillLossConfig, OptimConfig, TrainConfig
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import pad_batch
from lakd_ray.train.engines import build_engine
from lakd_ray.train.prefetch import load_batches
from lakd_ray.train.step import Objective, TrainBatch, compute_losses
from task import LANGUAGES, Task

EPOCHS = 20  # the time of the caches is divided by it
BASELINES = ("reference", "trainer, bf16")
LARGE_BATCH = BatchConfig(max_padded_seconds=240, max_utterances=64)  # fills a GPU

Epoch = Callable[[], object]  # trains one epoch


@contextmanager
def reference(task: Task) -> Iterator[Epoch]:
    """Yield an epoch of the reference code's training step, with transformers' own forward."""
    student = task.network(0).network.train()
    teachers = [task.network(seed).network.train() for seed in (1, 2, 3)]  # it never calls eval
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=3e-5)
    T, lam, tau = 5.0, 0.25, 0.25

    def epoch() -> None:
        for batch in task.random_batches():
            wave_BT = pad_batch([task.waves[row] for row in batch])[0].to(device())
            labels_B = task.labels_N[batch].to(device())
            logits_BC = student(wave_BT).logits
            with torch.no_grad():
                teacher_KBC = torch.stack([teacher(wave_BT).logits for teacher in teachers])
            cosine_K = F.cosine_similarity(logits_BC.detach().unsqueeze(0), teacher_KBC, dim=-1).mean(dim=1)
            weights_K = torch.softmax(cosine_K / tau, dim=0)
            log_q_BC = F.log_softmax(logits_BC / T, dim=-1)
            kl = sum(
                weight * F.kl_div(log_q_BC, F.softmax(soft / T, dim=-1), reduction="mean") * T * T
                for weight, soft in zip(weights_K, teacher_KBC, strict=True)
            )
            loss = (1 - lam) * F.cross_entropy(logits_BC, labels_B) + lam * kl
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            loss.item()

    yield epoch


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, task: Task) -> None:
        self._task = task

    def __len__(self) -> int:
        return len(self._task.waves)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_values": self._task.waves[row], "labels": int(self._task.labels_N[row])}


@contextmanager
def trainer(task: Task) -> Iterator[Epoch]:
    """Yield an epoch of transformers' Trainer."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler

    student = task.network(0).network
    teachers = [task.network(seed).network.eval().requires_grad_(False) for seed in (1, 2, 3)]
    T, lam = 5.0, 1 / 13

    class Distilling(Trainer):  # type: ignore[misc]  # untyped
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            labels_B = inputs.pop("labels")
            outputs = model(**inputs)
            with torch.no_grad():
                soft = [F.softmax(teacher(**inputs).logits.float() / T, dim=-1) for teacher in teachers]
            log_q_BC = F.log_softmax(outputs.logits.float() / T, dim=-1)
            kl = sum(F.kl_div(log_q_BC, p_BC, reduction="batchmean") * T * T / len(soft) for p_BC in soft)
            loss = (1 - lam) * F.cross_entropy(outputs.logits.float(), labels_B) + lam * kl
            return (loss, outputs) if return_outputs else loss

        def _get_train_sampler(self, *_: Any) -> Any:
            return LengthGroupedSampler(task.batch, lengths=[len(wave) for wave in task.waves])  # group_by_length

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        wave_BT, lengths_B = pad_batch([row["input_values"] for row in rows])
        mask_BT = (torch.arange(wave_BT.shape[1]) < lengths_B.unsqueeze(1)).long()
        labels_B = torch.tensor([row["labels"] for row in rows])
        return {"input_values": wave_BT, "attention_mask": mask_BT, "labels": labels_B}

    with tempfile.TemporaryDirectory(prefix="lakd-") as folder, without_launcher():
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=task.batch, num_train_epochs=1, learning_rate=3e-5,
            bf16=True, use_cpu=not has_gpu(), save_strategy="no", report_to=[], disable_tqdm=True,
            logging_strategy="no", remove_unused_columns=False,
        )  # fmt: skip

        def epoch() -> None:
            trainer_ = Distilling(student, settings, data_collator=collate, train_dataset=_Rows(task))
            with contextlib.redirect_stdout(io.StringIO()):
                trainer_.train()

        yield epoch


@dataclass(frozen=True)
class Options:
    """The optimizations of this project in a variant."""

    engine: str
    planned: bool = False
    cached_logits: bool = False
    features: bool = False
    precision: str = "fp32"
    compiled: bool = False
    batch: BatchConfig | None = None

    @property
    def train(self) -> TrainConfig:
        """The section `train` of an experiment."""
        settings = {"engine": self.engine, "precision": self.precision, "compile": self.compiled}
        return TrainConfig.model_validate(settings | {"gpu": has_gpu()})


@contextmanager
def ours(task: Task, caches: "Caches", options: Options) -> Iterator[Epoch]:
    """Yield an epoch of this project's engine and loss, with some of its optimizations."""
    steps = EPOCHS * len(task.waves) // 8
    engine = build_engine(task.network(0), OptimConfig(lr=3e-5), options.train, total_steps=steps)
    teachers = [] if options.cached_logits else [task.network(seed).eval() for seed in (1, 2, 3)]
    objective = Objective(DistillLossConfig(), LANGUAGES)

    def epoch() -> None:
        batches = task.planned_batches(options.batch) if options.planned else task.random_batches()
        collate = partial(caches.collate, features=options.features)
        for rows, batch in load_batches(batches, collate, engine.device, engine.dtype):
            if teachers:
                with torch.inference_mode():
                    outputs = [teacher(batch.inputs, batch.lengths_B).logits_BC for teacher in teachers]
                batch.teacher_logits_BKC.copy_(torch.stack(outputs, dim=1))
            parts = compute_losses(engine.forward, batch, objective)
            engine.backward(parts.loss, len(rows))
            engine.step()
        float(parts.loss.detach())

    try:
        yield epoch
    finally:
        engine.close()


class Caches:
    """Cached features and teacher logits, and the seconds for computing them."""

    def __init__(self, task: Task, precision: torch.dtype) -> None:
        self._task = task
        self._encoder = task.network(0).eval()
        self._teachers = [task.network(seed).eval() for seed in (1, 2, 3)]
        self.features: list[Tensor] = []
        self.logits_NKC = torch.empty(len(task.waves), 3, len(PAPER_EMOTIONS))
        self.seconds = timed(lambda: self._compute(precision))
        del self._encoder, self._teachers

    @torch.inference_mode()
    def _compute(self, precision: torch.dtype) -> None:
        for wave in self._task.waves:  # one at a time, without padding, as the library does
            length_1 = torch.tensor([len(wave)], device=device())
            features_1FH = self._encoder.extract_features(wave.to(device()).unsqueeze(0), length_1)
            self.features.append(features_1FH[0].half().cpu())
        for rows in self._task.planned_batches():
            batch = self.collate(rows, features=True).to(device(), torch.float32)
            with torch.autocast(device().type, dtype=precision, enabled=precision != torch.float32):
                logits = [teacher(batch.inputs, batch.lengths_B).logits_BC for teacher in self._teachers]
            self.logits_NKC[rows] = torch.stack(logits, dim=1).float().cpu()

    def collate(self, rows: list[int], *, features: bool) -> TrainBatch:
        """Return a batch of the task, of cached features or of waves."""
        task = self._task
        signals = [self.features[row].float() if features else task.waves[row] for row in rows]
        inputs, lengths_B = pad_batch(signals)
        languages = [task.languages[row] for row in rows]
        return TrainBatch(inputs, lengths_B, task.labels_N[rows], languages, self.logits_NKC[rows])


LADDER: dict[str, dict[str, Any]] = {
    "teachers in eval mode, this project's loss and engine": {},
    "+ teachers' logits once": {"cached_logits": True},
    "+ planned batches": {"cached_logits": True, "planned": True},
    "+ cached features (this project, fp32)": {"cached_logits": True, "planned": True, "features": True},
    "+ bf16 (this project)": {"cached_logits": True, "planned": True, "features": True, "precision": "bf16"},
    "+ torch.compile (train.compile)": {
        "cached_logits": True, "planned": True, "features": True, "precision": "bf16", "compiled": True,
    },
    "+ batches of 64": {
        "cached_logits": True, "planned": True, "features": True, "precision": "bf16", "compiled": True,
        "batch": LARGE_BATCH,
    },
}  # fmt: skip
"""This project's variants; the last one has other steps than the reference code, and is for GPUs."""


@dataclass
class Comparison:
    """The seconds of an epoch and the peak memory in GiB of each variant."""

    task: Task
    caches_seconds: float
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory_gib: dict[str, float] = field(default_factory=dict)

    def speeds(self, name: str) -> list[float]:
        """Return the audio seconds per second of each repeat."""
        return [self.task.seconds / seconds for seconds in self.seconds[name]]

    def ratios(self, name: str, baseline: str) -> list[float]:
        """Return the speed in units of a baseline's, for each repeat; empty if one of the two failed."""
        pairs = zip(self.seconds.get(baseline, ()), self.seconds.get(name, ()), strict=False)
        return [base / seconds for base, seconds in pairs]


def compare(
    task: Task,
    repeats: int,
    engine: str,
    names: Collection[str],
    attempt: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
    on_repeat: Callable[["Comparison"], None] = lambda _: None,
) -> Comparison:
    """Measure variants; on a GPU, each of them trains an epoch before the one that counts.

    Args:
        task: the utterances.
        repeats: number of repeats.
        engine: the engine of this project's variants.
        names: the variants, of `BASELINES` and `LADDER`.
        attempt: returns the context in which a variant runs; it may suppress errors.
        on_repeat: called after each repeat with the results so far.
    """
    caches = Caches(task, torch.bfloat16)
    result = Comparison(task, caches.seconds)
    variants: dict[str, Callable[[], AbstractContextManager[Epoch]]] = {
        "reference": lambda: reference(task),
        "trainer, bf16": lambda: trainer(task),
        **{name: (lambda step=step: ours(task, caches, Options(engine, **step))) for name, step in LADDER.items()},
    }
    for repeat in range(repeats):
        for name in names:
            reset_memory()
            share = caches.seconds / EPOCHS if "cached_logits" in LADDER.get(name, {}) else 0.0
            with attempt(name):
                is_compiled = "compiled" in LADDER.get(name, {})  # compilation happens once in a run
                seconds = _train_epoch(variants[name], warm_up=is_compiled or has_gpu())
                result.seconds.setdefault(name, []).append(seconds + share)
                result.memory_gib[name] = peak_memory_gib()
                print(f"{repeat + 1}/{repeats} {name}: {result.speeds(name)[-1]:.2f} audio-s/s", flush=True)
        on_repeat(result)
    return result


def _train_epoch(variant: Callable[[], AbstractContextManager[Epoch]], *, warm_up: bool) -> float:
    with variant() as epoch:
        if warm_up:
            print(f"first epoch, not counted: {timed(epoch):.1f} s", flush=True)
        return timed(epoch)


def main() -> None:
    """Parse the arguments, run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="utterances per batch; 16 in fp32 take over 24 GB")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--engine", choices=("deepspeed", "torch"), default="deepspeed")
    options = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", "0")
    names = [*BASELINES, *LADDER] if has_gpu() else [*BASELINES, *LADDER][:-1]
    with single_rank():
        architecture = (SMALL if options.small else BASE) | {"apply_spec_augment": False}
        task = Task(options.utterances, architecture, options.batch)
        _print(compare(task, options.repeats, options.engine, names))


def _print(result: Comparison) -> None:
    task = result.task
    name_of_device = torch.cuda.get_device_name() if has_gpu() else f"{torch.get_num_threads()} threads"
    print(f"\n{len(task.waves)} utterances, {task.seconds:.0f} s of audio, {name_of_device}")
    print(f"caches: {result.caches_seconds:.1f} s once, divided by {EPOCHS} epochs\n")
    print("| | audio-s/s, median | range | of the reference | of Trainer |\n|---|---|---|---|---|")
    for name in result.seconds:
        speeds = result.speeds(name)
        ratios = [f"{median(result.ratios(name, baseline)):.2f}" for baseline in BASELINES]
        print(f"| {name} | {median(speeds):.2f} | {min(speeds):.2f} to {max(speeds):.2f} | {' | '.join(ratios)} |")
    padded = {f"random batches of {task.batch}": task.random_batches(), "planned batches": task.planned_batches()}
    for name, batches in padded.items():
        lengths = [[len(task.waves[row]) for row in batch] for batch in batches]
        share_padded = 1 - sum(map(sum, lengths)) / sum(max(batch) * len(batch) for batch in lengths)
        print(f"padding of {name}: {100 * share_padded:.1f} %")


if __name__ == "__main__":
    main()
