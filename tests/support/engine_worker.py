"""Run one rank for the tests of engines, with real DeepSpeed over gloo.

A process runs every scenario of its world size, because starting a process takes much longer than a scenario. Rank 0
stores the results as `<out>/world-<n>.pt`: an `OneRankResults` or a `TwoRankResults`.

    engine_worker.py RANK WORLD_SIZE OUT
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lakd_ray.models import EmotionClassifier
from lakd_ray.train import checkpointing
from support import engine_faults, loop_scenario
from support import tiny_models as tiny
from support.engine_results import (
    AveragingResult,
    OneRankResults,
    ResumeResult,
    StepsResult,
    TrainerResults,
    TrainingResult,
    TwoRankResults,
)
from support.engine_steps import (
    ACCUMULATED_SHARES,
    ALL_UTTERANCES,
    ENGINES,
    LANGUAGE_AWARE_OBJECTIVE,
    LONG_STEPS,
    OBJECTIVE,
    OPTIM,
    STEPS,
    UNEQUAL_SHARES,
    Objective,
    full_weights,
    make_batch,
    make_engine,
    make_language_aware_model,
    model_weights,
    train_steps,
)


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
    middle_weights = full_weights(engine)
    losses += train_steps(engine, shares, range(5, STEPS), objective)
    with engine.eval_mode():
        probe = make_batch(99)
        logits_BC = engine.forward(probe.inputs, probe.lengths_B, probe.languages_B).logits_BC.clone()
    result = TrainingResult(losses, middle_weights, full_weights(engine), rates, logits_BC)
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
    checkpointing.save_rank_state(folder / f"generators-{rank}.pt", device=engine.device)
    losses = train_steps(engine, shares, range(3, 6), LANGUAGE_AWARE_OBJECTIVE)
    uninterrupted = StepsResult(losses, full_weights(engine), engine.learning_rate)
    engine.close()
    dist.barrier()
    checkpointing.seed_rng(8, rank)
    # Frozen weights are not saved, so they must start from the same seed.
    network = make_language_aware_model(language_dropout=0.5, seed=0 if frozen else 1, mask_time_length=2)
    network.backbone.feature_encoder.requires_grad_(not frozen)
    engine = make_engine(network, **settings)
    engine.load(folder)
    checkpointing.load_rank_state(folder / f"generators-{rank}.pt", engine.device)
    losses = train_steps(engine, shares, range(3, 6), LANGUAGE_AWARE_OBJECTIVE)
    resumed = StepsResult(losses, full_weights(engine), engine.learning_rate)
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
        step_weights.append(model_weights(engine))
    with engine.eval_mode():
        eval_weights = model_weights(engine)
    weights_after_eval = model_weights(engine)
    engine.save(folder)
    saved_average = full_weights(engine)
    engine.close()
    engine = make_engine(tiny.model(**tiny.DETERMINISTIC, seed=3), optim, **settings)
    engine.load(folder)
    result = AveragingResult(step_weights, eval_weights, weights_after_eval, saved_average, full_weights(engine))
    engine.close()
    return result


def save_with_two_ranks(folder: Path, rank: int, **settings: Any) -> StepsResult:
    """Train three steps, save the state, and train three more."""
    folder.mkdir(exist_ok=True, parents=True)
    engine = make_engine(**settings)
    train_steps(engine, UNEQUAL_SHARES[rank], range(3))
    engine.save(folder)
    losses = train_steps(engine, UNEQUAL_SHARES[rank], range(3, 6))
    result = StepsResult(losses, full_weights(engine), engine.learning_rate)
    engine.close()
    return result


def resume_with_one_rank(folder: Path, **settings: Any) -> StepsResult:
    """Train three steps from the state that two ranks saved."""
    engine = make_engine(**settings)
    engine.load(folder, world_size=2)
    losses = train_steps(engine, ALL_UTTERANCES, range(3, 6))
    result = StepsResult(losses, full_weights(engine), engine.learning_rate)
    engine.close()
    return result


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
        alive_after_close={name: engine_faults.list_alive_after_close(**setting) for name, setting in ENGINES.items()},
        average_of_two_ranks=engine_faults.load_average(out / "half-zero-2", zero_stage=2),
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
    half_precision_averaging = {
        stage: engine_faults.average_in_half_precision(out / f"half-zero-{stage}", zero_stage=stage)
        for stage in (0, 1, 2)
    }
    dist.barrier()
    (out / "saved-by-two").touch()
    long_losses = {name: train_long(UNEQUAL_SHARES[rank], **settings) for name, settings in ENGINES.items()}
    short_utterance = {
        name: engine_faults.train_with_short_utterance(rank, **settings) for name, settings in ENGINES.items()
    }
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
        short_utterance=short_utterance,
        overflow_by_rank=engine_faults.overflow_on_one_rank(rank),
        half_precision_averaging=half_precision_averaging,
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
