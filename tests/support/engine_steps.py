"""Train a few steps of tiny models, for the tests of engines and the processes that they start."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lakd_ray.config import DistillLossConfig, OptimConfig, TrainConfig
from lakd_ray.models import EmotionClassifier, pad_batch
from lakd_ray.train.engines import build_engine
from lakd_ray.train.engines.base import Engine
from lakd_ray.train.step import LOSS_NAMES, Objective, TrainBatch, compute_losses
from support import tiny_models as tiny
from support.engine_results import Weights

STEPS = 10
LONG_STEPS = 50
UTTERANCES = 6  # in each step
OPTIM = OptimConfig(lr=1e-3, max_grad_norm=0.1, warmup_ratio=0.3, lr_schedule="linear", weight_decay=0.1)
LOSS = DistillLossConfig(weighting="language")
TEACHERS = ("en", "fi", "fr")
OBJECTIVE = Objective(LOSS, TEACHERS)
LANGUAGE_AWARE_OBJECTIVE = Objective(
    DistillLossConfig(weighting="attention", lam=0.3), TEACHERS, language_id_loss_weight=0.1
)
ENGINES: dict[str, dict[str, Any]] = {
    "torch": {"engine": "torch"},
    **{f"zero-{stage}": {"zero_stage": stage} for stage in (0, 1, 2, 3)},
}
ALL_UTTERANCES = [range(UTTERANCES)]
UNEQUAL_SHARES = ([[0, 1, 2, 3]], [[4, 5]])
"""By rank: the utterances of each micro-batch of a step."""
ACCUMULATED_SHARES = ([[0, 1], [2]], [[3], [4, 5]])


def make_batch(step: int, indices: Sequence[int] = range(UTTERANCES)) -> TrainBatch:
    """Return some of the utterances of a step."""
    random = np.random.default_rng(step)
    lengths = random.integers(2000, 6000, UTTERANCES)
    waves = [torch.from_numpy(random.standard_normal(length).astype(np.float32)) for length in lengths]
    labels_B = torch.from_numpy(random.integers(0, 4, UTTERANCES))
    teachers_BKC = torch.from_numpy(3 * random.standard_normal((UTTERANCES, 3, 4)).astype(np.float32))
    index = list(indices)
    wave_BT, lengths_B = pad_batch([waves[number] for number in index])
    languages = [TEACHERS[number % 3] for number in index]
    languages_B = torch.tensor([number % 3 for number in index])
    return TrainBatch(wave_BT, lengths_B, labels_B[index], languages, teachers_BKC[index], languages_B)


def add_masks(engine: Engine, batch: TrainBatch, step: int) -> TrainBatch:
    """Add the masks of SpecAugment to a batch, if the model has it."""
    num_frames = engine._model.count_frames(batch.lengths_B).tolist()
    seeds = [(step, length) for length in batch.lengths_B.tolist()]
    return replace(batch, spec_augment=engine._model.plan_spec_augment(num_frames, seeds))


def make_language_aware_model(*, language_dropout: float = 0.0, **changes: Any) -> EmotionClassifier:
    """Build a language-aware student; with language dropout a step is not a deterministic function of its batch."""
    return tiny.aware(head=tiny.AWARE.model_copy(update={"language_dropout": language_dropout}), **changes)


def train_steps(
    engine: Engine, shares: Sequence[Sequence[int]], steps: Sequence[int], objective: Objective = OBJECTIVE
) -> list[float]:
    """Train steps on this rank's micro-batches; return the mean losses over all ranks."""
    means = []
    for step in steps:
        total = torch.zeros(len(LOSS_NAMES), dtype=torch.float64)
        for share in shares:
            batch = add_masks(engine, make_batch(step, share), step).to(engine.device, engine.dtype)
            losses = compute_losses(engine.forward, batch, objective)
            engine.backward(losses.loss, UTTERANCES)
            engine.step()
            total += losses.to_tensor().cpu()
        dist.all_reduce(total)
        means.append(float(total[0]) / UTTERANCES)
    return means


def make_engine(model: EmotionClassifier | None = None, optim: OptimConfig = OPTIM, **train: Any) -> Engine:
    settings = TrainConfig.model_validate({"gpu": False} | train)
    return build_engine(model or tiny.model(**tiny.DETERMINISTIC), optim, settings, total_steps=STEPS)


def full_weights(engine: Engine) -> Weights:
    return {name: value.clone() for name, value in engine.full_state_dict()[1].items()}


def model_weights(engine: Engine) -> Weights:
    return {name: value.detach().clone() for name, value in engine._model.network.named_parameters()}
