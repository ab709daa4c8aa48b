"""Run one rank for the tests of engines, with real DeepSpeed over gloo.

A process runs every scenario of its world size, because starting a process takes much longer than a scenario. Rank 0
stores the results as `<out>/world-<n>.pt`: an `OneRankResults` or a `TwoRankResults`.

    engine_worker.py RANK WORLD_SIZE OUT
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lakd_ray.config import DistillLossConfig, OptimConfig, TrainConfig
from lakd_ray.models import EmotionClassifier, pad_batch
from lakd_ray.train import checkpointing
from lakd_ray.train.engines import build_engine
from lakd_ray.train.engines.base import Engine
from lakd_ray.train.step import LOSS_NAMES, Objective, TrainBatch, compute_losses
from support import loop_scenario
from support import tiny_models as tiny
from support.engine_results import (
    AveragingResult,
    OneRankResults,
    ResumeResult,
    StepsResult,
    TrainerResults,
    TrainingResult,
    TwoRankResults,
    Weights,
)

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


def make_masked_batch(engine: Engine, step: int, indices: Sequence[int] = range(UTTERANCES)) -> TrainBatch:
    """Return a training batch with the masks of SpecAugment, if the model has it."""
    batch, model = make_batch(step, indices), engine._model
    num_frames = model.count_frames(batch.lengths_B).tolist()
    return replace(batch, spec_augment=model.plan_spec_augment(num_frames, [(step, index) for index in indices]))


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
            losses = compute_losses(engine.forward, make_masked_batch(engine, step, share), objective)
            engine.backward(losses.loss, UTTERANCES)
            engine.step()
            total += losses.to_tensor()
        dist.all_reduce(total)
        means.append(float(total[0]) / UTTERANCES)
    return means


def make_engine(model: EmotionClassifier | None = None, optim: OptimConfig = OPTIM, **train: Any) -> Engine:
    return build_engine(model or tiny.model(**tiny.DETERMINISTIC), optim, TrainConfig(**train), total_steps=STEPS)


def train(
    shares: Sequence[Sequence[int]],
    model: EmotionClassifier | None = None,
    objective: Objective = OBJECTIVE,
    **settings: Any,
) -> TrainingResult:
    """Train ten steps."""
    engine = make_engine(model, gradient_accumulation_steps=len(shares), **settings)
    rates = [engine.learning_rate]
    losses = train_steps(engine, shares, range(5), objective)
    rates.append(engine.learning_rate)
    middle_weights = _weights(engine)
    losses += train_steps(engine, shares, range(5, STEPS), objective)
    with engine.eval_mode():
        probe = make_batch(99)
        logits_BC = engine.forward(probe.inputs, probe.lengths_B, probe.languages_B).logits_BC.clone()
    result = TrainingResult(losses, middle_weights, _weights(engine), rates, logits_BC)
    engine.close()
    return result


def train_and_resume(
    folder: Path, rank: int, shares: Sequence[Sequence[int]], *, frozen: bool = False, **settings: Any
) -> ResumeResult:
    """Train with dropout, SpecAugment and language dropout, without and with an interruption."""
    folder.mkdir(exist_ok=True)
    checkpointing.seed_rng(7, rank)
    network = make_language_aware_model(language_dropout=0.5, mask_time_length=2)
    network.backbone.feature_encoder.requires_grad_(not frozen)
    engine = make_engine(network, **settings)
    first_losses = train_steps(engine, shares, range(3), LANGUAGE_AWARE_OBJECTIVE)
    engine.save(folder)
    checkpointing.save_rank_state(folder / f"generators-{rank}.pt")
    losses = train_steps(engine, shares, range(3, 6), LANGUAGE_AWARE_OBJECTIVE)
    uninterrupted = StepsResult(losses, _weights(engine), engine.learning_rate)
    engine.close()
    dist.barrier()
    checkpointing.seed_rng(8, rank)
    # Frozen weights are not saved, so they must start from the same seed.
    network = make_language_aware_model(language_dropout=0.5, seed=0 if frozen else 1, mask_time_length=2)
    network.backbone.feature_encoder.requires_grad_(not frozen)
    engine = make_engine(network, **settings)
    engine.load(folder)
    checkpointing.load_rank_state(folder / f"generators-{rank}.pt")
    losses = train_steps(engine, shares, range(3, 6), LANGUAGE_AWARE_OBJECTIVE)
    resumed = StepsResult(losses, _weights(engine), engine.learning_rate)
    engine.close()
    return ResumeResult(first_losses, uninterrupted, resumed)


def train_long(shares: Sequence[Sequence[int]], **settings: Any) -> list[float]:
    """Train fifty steps and return the losses."""
    engine = make_engine(**settings)
    losses = train_steps(engine, shares, range(LONG_STEPS))
    engine.close()
    return losses


def train_with_averaging(folder: Path, **settings: Any) -> AveragingResult:
    """Train with averaged weights, evaluate, save, and load the state again."""
    folder.mkdir(exist_ok=True)
    optim = OPTIM.model_copy(update={"ema_decay": 0.5, "head_lr": 1e-2})
    engine = make_engine(optim=optim, **settings)
    step_weights = []
    for step in range(3):
        train_steps(engine, ALL_UTTERANCES, [step])
        step_weights.append(_parameters(engine))
    with engine.eval_mode():
        eval_weights = _parameters(engine)
    weights_after_eval = _parameters(engine)
    engine.save(folder)
    saved_average = _weights(engine)
    engine.close()
    engine = make_engine(tiny.model(**tiny.DETERMINISTIC, seed=3), optim, **settings)
    engine.load(folder)
    result = AveragingResult(step_weights, eval_weights, weights_after_eval, saved_average, _weights(engine))
    engine.close()
    return result


def save_with_two_ranks(folder: Path, rank: int, **settings: Any) -> StepsResult:
    """Train three steps, save the state, and train three more."""
    folder.mkdir(exist_ok=True, parents=True)
    engine = make_engine(**settings)
    train_steps(engine, UNEQUAL_SHARES[rank], range(3))
    engine.save(folder)
    losses = train_steps(engine, UNEQUAL_SHARES[rank], range(3, 6))
    result = StepsResult(losses, _weights(engine), engine.learning_rate)
    engine.close()
    return result


def resume_with_one_rank(folder: Path, **settings: Any) -> StepsResult:
    """Train three steps from the state that two ranks saved."""
    engine = make_engine(**settings)
    engine.load(folder, world_size=2)
    losses = train_steps(engine, ALL_UTTERANCES, range(3, 6))
    result = StepsResult(losses, _weights(engine), engine.learning_rate)
    engine.close()
    return result


def _weights(engine: Engine) -> Weights:
    return {name: value.clone() for name, value in engine.full_state_dict()[1].items()}


def _parameters(engine: Engine) -> Weights:
    return {name: value.detach().clone() for name, value in engine._model.network.named_parameters()}


def _wait_for(file: Path) -> None:
    """Wait for a file of the two other processes."""
    deadline = time.monotonic() + 200
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file} was not written within 200 s")
        time.sleep(0.1)


def run_one_rank(out: Path) -> OneRankResults:
    by_zero_stage, language_aware = {}, {}
    for stage in (0, 1, 2):
        by_zero_stage[stage] = train(ALL_UTTERANCES, zero_stage=stage)
        model = make_language_aware_model(**tiny.DETERMINISTIC)
        language_aware[stage] = train(ALL_UTTERANCES, model, LANGUAGE_AWARE_OBJECTIVE, zero_stage=stage)
    accumulated = train([[0, 1, 2, 3], [4, 5]])
    gradient_checkpointing = train(ALL_UTTERANCES, gradient_checkpointing=True)
    averaging = train_with_averaging(out / "averaged", zero_stage=2)
    long_losses = {name: train_long(ALL_UTTERANCES, **settings) for name, settings in ENGINES.items()}
    _wait_for(out / "saved-by-two")
    resumed = {name: resume_with_one_rank(out / "two-ranks" / name, **settings) for name, settings in ENGINES.items()}
    return OneRankResults(
        by_zero_stage=by_zero_stage,
        language_aware=language_aware,
        accumulated=accumulated,
        gradient_checkpointing=gradient_checkpointing,
        averaging=averaging,
        long_losses=long_losses,
        resumed_from_two_ranks=resumed,
        run_resumed_from_two_ranks=loop_scenario.resume_with_one_rank(out / "loop"),
    )


def run_two_ranks(rank: int, out: Path) -> TwoRankResults:
    uninterrupted = {
        name: save_with_two_ranks(out / "two-ranks" / name, rank, **settings) for name, settings in ENGINES.items()
    }
    (out / "loop").mkdir(exist_ok=True)
    gathered: list[Any] = [None] * 2
    dist.all_gather_object(gathered, loop_scenario.run(out / "loop", rank, 2))
    runs_by_rank: list[TrainerResults] = gathered
    loop_scenario.kill_with_two_ranks(out / "loop", rank)
    dist.barrier()
    (out / "saved-by-two").touch()
    long_losses = {name: train_long(UNEQUAL_SHARES[rank], **settings) for name, settings in ENGINES.items()}
    accumulated_shares, unequal_shares = ACCUMULATED_SHARES[rank], UNEQUAL_SHARES[rank]
    return TwoRankResults(
        unequal=train(unequal_shares),
        accumulated=train(accumulated_shares),
        language_aware=train(
            accumulated_shares, make_language_aware_model(**tiny.DETERMINISTIC), LANGUAGE_AWARE_OBJECTIVE
        ),
        resumed=train_and_resume(out / "resume", rank, unequal_shares),
        resumed_frozen=train_and_resume(out / "frozen", rank, unequal_shares, frozen=True),
        long_losses=long_losses,
        uninterrupted=uninterrupted,
        runs_by_rank=runs_by_rank,
    )


def main(rank: int, world_size: int, out: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{out / f'store-{world_size}'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    results = run_one_rank(out) if world_size == 1 else run_two_ranks(rank, out)
    if rank == 0:
        torch.save(results, out / f"world-{world_size}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
