"""Speed of a multi-teacher epoch at wav2vec2-base size, compared with the reference code and with Trainer. No Ray.

    python benchmarks/steps.py [--utterances 64] [--repeats 2] [--batch 16] [--small]

The input is noise with lengths like those of IEMOCAP (log-normal, mean 4.5 s, cut at 20 s), the weights are random;
speed depends on neither. The variants take turns in each repeat; speeds are audio seconds per second of the complete
epoch, as median and range. Trainer needs accelerate: pip install -e ".[bench]".

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
import gc
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lakd_ray.config import BatchConfig as BatchSettings
from lakd_ray.config import DistillLossConfig, ModelConfig, OptimConfig, TrainConfig
from lakd_ray.data.batch_plan import plan_training_epoch
from lakd_ray.data.manifest import Manifest
from lakd_ray.devices import device_name, process_group_backend, select_device
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import EmotionClassifier, build_model, pad_batch
from lakd_ray.train.engines import build_engine
from lakd_ray.train.engines.base import Engine
from lakd_ray.train.step import Objective, TrainBatch, compute_losses

RATE = 16_000
EPOCHS = 20  # the time of the caches is divided by it
LANGUAGES = ("en", "fi", "fr")
BASE: dict[str, Any] = {"model_type": "wav2vec2", "apply_spec_augment": False}
SMALL = BASE | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip

Epoch = Callable[[], float]  # trains one epoch and returns its seconds


class Task:
    """Random utterances and the networks to train on them."""

    def __init__(self, utterances: int, architecture: dict[str, Any], batch: int) -> None:
        random = np.random.default_rng(0)
        seconds = np.clip(random.lognormal(np.log(4.5) - 0.7**2 / 2, 0.7, utterances), 0.5, 20)
        self.waves = [torch.from_numpy(random.standard_normal(int(s * RATE)).astype(np.float32)) for s in seconds]
        self.labels_N = torch.from_numpy(random.integers(0, 4, utterances))
        self.languages = [LANGUAGES[index % 3] for index in range(utterances)]
        self.seconds = sum(len(wave) for wave in self.waves) / RATE
        self._architecture, self.batch = architecture, batch
        self.manifest = _manifest(self)

    def network(self, seed: int) -> EmotionClassifier:
        """Return a network with a frozen feature encoder, as in the paper."""
        settings = ModelConfig(config=self._architecture, freeze_feature_encoder=False)
        model = build_model(settings, PAPER_EMOTIONS, seed=seed)
        model.backbone.feature_encoder.requires_grad_(False)
        return model

    def random_batches(self, seed: int) -> Iterator[list[int]]:
        """Yield random batches of a fixed number of rows."""
        order = np.random.default_rng(seed).permutation(len(self.waves)).tolist()
        for start in range(0, len(order), self.batch):
            yield order[start : start + self.batch]

    def planned_batches(self, epoch: int) -> Iterator[list[int]]:
        """Yield this project's batches of similar lengths."""
        settings = BatchSettings(max_padded_seconds=60, max_utterances=self.batch)
        rows = np.arange(len(self.waves))
        plan = plan_training_epoch(
            self.manifest, rows, settings, seed=0, epoch=epoch, world_size=1, gradient_accumulation_steps=1
        )
        for batch in plan.batches(0):
            yield batch.tolist()


def _manifest(task: Task) -> Manifest:
    count = len(task.waves)
    names = [f"u{index}" for index in range(count)]
    return Manifest(
        table=pa.table({"utterance": names, "speaker": names, "audio_sha256": names}),
        labels_N=task.labels_N.numpy(),
        splits_N=np.array(["train"] * count),
        languages_N=np.array(task.languages, dtype=object),
        num_samples_N=np.array([len(wave) for wave in task.waves]),
        shards=("none",),
        shard_N=np.zeros(count, dtype=np.int64),
        row_group_N=np.arange(count) // 16,
        row_N=np.arange(count) % 16,
    )


def reference(task: Task) -> Epoch:
    """Return an epoch of the reference code's training step, with transformers' own forward."""
    student = task.network(0).network.train()
    teachers = [task.network(seed).network.train() for seed in (1, 2, 3)]  # it never calls eval
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=3e-5)
    T, lam, tau = 5.0, 0.25, 0.25

    def epoch() -> float:
        started = time.perf_counter()
        for batch in task.random_batches(0):
            wave_BT, _ = pad_batch([task.waves[row] for row in batch])
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
            loss = (1 - lam) * F.cross_entropy(logits_BC, task.labels_N[batch]) + lam * kl
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            loss.item()
        return time.perf_counter() - started

    return epoch


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, task: Task) -> None:
        self._task = task

    def __len__(self) -> int:
        return len(self._task.waves)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_values": self._task.waves[row], "labels": int(self._task.labels_N[row])}


def trainer(task: Task) -> Epoch:
    """Return an epoch of transformers' Trainer."""
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

    folder = tempfile.mkdtemp(prefix="lakd-")

    def epoch() -> float:
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=task.batch, num_train_epochs=1, learning_rate=3e-5,
            bf16=True, use_cpu=select_device().type == "cpu", save_strategy="no", report_to=[], disable_tqdm=True,
            logging_strategy="no", remove_unused_columns=False,
        )  # fmt: skip
        trainer_ = Distilling(student, settings, data_collator=collate, train_dataset=_Rows(task))
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer_.train()
        return time.perf_counter() - started

    return epoch


def ours(
    task: Task,
    caches: "Caches",
    *,
    planned: bool,
    cached_logits: bool,
    features: bool,
    precision: str,
    engine: str,
    compiled: bool,
) -> Epoch:
    """Return an epoch of this project's engine and loss, with some of its optimizations."""
    student = task.network(0)
    settings = TrainConfig.model_construct(**_train(precision, engine, compiled))
    engine_: Engine = build_engine(student, OptimConfig(lr=3e-5), settings, total_steps=EPOCHS * len(task.waves) // 8)
    teachers = [] if cached_logits else [task.network(seed).eval() for seed in (1, 2, 3)]
    objective = Objective(DistillLossConfig(), LANGUAGES)

    if compiled:  # compilation happens once in a run and is not part of the epoch
        started = time.perf_counter()
        first = next(task.planned_batches(0))
        inputs, lengths_B = pad_batch([caches.features[row].float() for row in first])
        inputs, lengths_B = inputs.to(engine_.device, engine_.dtype), lengths_B.to(engine_.device)
        engine_.forward(inputs, lengths_B).logits_BC.sum().backward()
        student.zero_grad()
        print(f"compiled in {time.perf_counter() - started:.0f} s, not counted", flush=True)

    def epoch() -> float:
        started = time.perf_counter()
        for batch in task.planned_batches(0) if planned else task.random_batches(0):
            signals = [caches.features[row] for row in batch] if features else [task.waves[row] for row in batch]
            inputs, lengths_B = pad_batch([signal.float() for signal in signals])
            if cached_logits:
                logits_BKC = caches.logits_NKC[batch]
            else:
                with torch.inference_mode():
                    logits_BKC = torch.stack([teacher(inputs, lengths_B).logits_BC for teacher in teachers], dim=1)
                logits_BKC = logits_BKC.clone()
            train_batch = TrainBatch(
                inputs, lengths_B, task.labels_N[batch], [task.languages[row] for row in batch], logits_BKC
            ).to(engine_.device, engine_.dtype)
            parts = compute_losses(engine_.forward, train_batch, objective)
            engine_.backward(parts.loss, len(batch))
            engine_.step()
        float(parts.loss.detach())
        seconds = time.perf_counter() - started
        engine_.close()
        return seconds

    return epoch


def _train(precision: str, engine: str, compiled: bool) -> dict[str, Any]:
    return TrainConfig(
        gpu=select_device().type == "cuda", precision=precision, engine=engine, compile=compiled
    ).model_dump()


class Caches:
    """Cached features and teacher logits, and the seconds for computing them."""

    def __init__(self, task: Task, precision: torch.dtype) -> None:
        device = select_device()
        encoder = task.network(0).eval().to(device)
        teachers = [task.network(seed).eval().to(device) for seed in (1, 2, 3)]
        started = time.perf_counter()
        self.features, logits = [], []
        with torch.inference_mode():
            for wave in task.waves:  # one at a time, without padding
                length_1 = torch.tensor([len(wave)], device=device)
                features_1FH = encoder.extract_features(wave.to(device).unsqueeze(0), length_1)
                with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
                    frames_1 = torch.tensor([features_1FH.shape[1]], device=device)
                    teacher_logits = [teacher(features_1FH, frames_1).logits_BC[0].float() for teacher in teachers]
                self.features.append(features_1FH[0].half().cpu())
                logits.append(torch.stack(teacher_logits).cpu())
        self.logits_NKC = torch.stack(logits)
        self.seconds = time.perf_counter() - started


def main() -> None:
    """Parse the arguments and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="utterances per batch; 16 in fp32 take over 24 GB")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--engine", choices=("deepspeed", "torch"), default="deepspeed")
    options = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", "0")
    with tempfile.TemporaryDirectory() as folder:
        backend = process_group_backend(select_device().type)
        dist.init_process_group(backend, init_method=f"file://{Path(folder, 'store')}", rank=0, world_size=1)
        task = Task(options.utterances, SMALL if options.small else BASE, options.batch)
        compare(task, options.repeats, options.engine)
        dist.destroy_process_group()


def compare(task: Task, repeats: int, engine: str) -> None:
    """Measure all variants and print a table."""
    caches = Caches(task, torch.bfloat16)
    share = caches.seconds / EPOCHS
    steps: dict[str, dict[str, Any]] = {
        "teachers in eval mode, this project's loss and engine": {},
        "+ teachers' logits once": {"cached_logits": True},
        "+ planned batches": {"cached_logits": True, "planned": True},
        "+ cached features (this project, fp32)": {"cached_logits": True, "planned": True, "features": True},
        "+ bf16 (this project)": {
            "cached_logits": True, "planned": True, "features": True, "precision": "bf16",
        },
        "+ torch.compile (train.compile)": {
            "cached_logits": True, "planned": True, "features": True, "precision": "bf16", "compiled": True,
        },
    }  # fmt: skip
    defaults = {
        "planned": False, "cached_logits": False, "features": False, "precision": "fp32", "engine": engine,
        "compiled": False,
    }  # fmt: skip
    variants: dict[str, Callable[[], Epoch]] = {
        "reference": lambda: reference(task),
        "trainer, bf16": lambda: trainer(task),
        **{name: (lambda step=step: ours(task, caches, **defaults | step)) for name, step in steps.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats):
        for name, prepare in variants.items():
            extra = share if "cached_logits" in steps.get(name, {}) else 0.0
            seconds[name].append(prepare()() + extra)
            gc.collect()  # frees reference cycles of networks and optimizers, for the next variant
            print(f"{repeat + 1}/{repeats} {name}: {task.seconds / seconds[name][-1]:.2f} audio-s/s", flush=True)
    _print(task, seconds, caches, share)


def _print(task: Task, seconds: dict[str, list[float]], caches: Caches, share: float) -> None:
    device = select_device()
    name = device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"\n{len(task.waves)} utterances, {task.seconds:.0f} s of audio, {name}")
    print(f"caches: {caches.seconds:.1f} s once, {share:.2f} s of each of {EPOCHS} epochs\n")
    print("| | audio-s/s, median | range | of the reference | of Trainer |\n|---|---|---|---|---|")
    for name, values in seconds.items():
        speeds = [task.seconds / value for value in values]
        ratios = [
            median(base / value for base, value in zip(seconds[baseline], values, strict=True))
            for baseline in ("reference", "trainer, bf16")
        ]
        range_ = f"{min(speeds):.2f} to {max(speeds):.2f}"
        print(f"| {name} | {median(speeds):.2f} | {range_} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    padded = {
        f"random batches of {task.batch}": list(task.random_batches(0)),
        "planned batches": list(task.planned_batches(0)),
    }
    for name, batches in padded.items():
        lengths = [[len(task.waves[row]) for row in batch] for batch in batches]
        share_padded = 1 - sum(map(sum, lengths)) / sum(max(batch) * len(batch) for batch in lengths)
        print(f"padding of {name}: {100 * share_padded:.1f} %")


if __name__ == "__main__":
    main()
