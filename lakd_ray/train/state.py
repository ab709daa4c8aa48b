"""What a training run leaves in its folder, and how it goes on after an interruption.

    <run folder>/
      record.json       what makes the run; written first, and again when it is finished
      metrics.jsonl     one line per epoch
      state.json        points at the newest complete resume folder and the best checkpoint; replaced at once or not
      resume-0007/      engine state after epoch 7, random generators of every rank
      resume-0007-00120/  the same after 120 more batches of the epoch that follows
      best-0005/        checkpoint of the best epoch so far (transformers format)

`state.json` is written after the folders that it names are sealed, so a crash at any moment leaves the epoch before.
"""

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lakd_ray import records, storage
from lakd_ray.config import Experiment, dump
from lakd_ray.errors import CheckpointError, StageError
from lakd_ray.runs import Run

STATE = "state.json"
METRICS = "metrics.jsonl"


@dataclass
class State:
    """How far a run has come: the position in its data is (seed, epoch, cursor)."""

    epoch: int = 0
    """Epochs done."""
    resume: str | None = None
    """Folder with the engine's state."""
    best: str | None = None
    """Folder of the best epoch's checkpoint."""
    best_score: tuple[float, float] = (-1.0, 0.0)
    """(dev UR, minus dev cross-entropy) of the best epoch: the loss breaks ties."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """One entry per epoch."""
    cursor: int = 0
    """Batches of the next epoch that each rank has trained on already."""

    def write(self, folder: str) -> None:
        """Make this the run's state."""
        lines = "".join(json.dumps(line) + "\n" for line in self.metrics)
        storage.write_json(storage.join(folder, STATE), asdict(self))
        storage.write_bytes(storage.join(folder, METRICS), lines.encode())

    @classmethod
    def read(cls, folder: str) -> "State":
        """The run's state, a fresh one if it has not finished an epoch."""
        if not storage.exists(storage.join(folder, STATE)):
            return cls()
        content = storage.read_json(storage.join(folder, STATE))
        return cls(**content | {"best_score": tuple(content["best_score"])})


def made_by(run: Run, config: Experiment, inputs: dict[str, str]) -> dict[str, Any]:
    """What a run's weights depend on.

    Args:
        inputs: digests of the data and of the teachers' logits.
    """
    train = dump(config.train)
    shaping = ("workers", "zero_stage", "precision", "accumulation", "cpus_per_worker", "gpu", "cached_features")
    return {
        "run": {key: value for key, value in dump(run).items() if key not in ("id", "stage", "variant")},
        "batch": dump(config.batch),
        "train": {key: train[key] for key in shaping},
        "splits": {corpus.name: dump(corpus.split) for corpus in config.corpora},
        "inputs": inputs,
    }


def best_checkpoint(run: Run, config: Experiment) -> str:
    """Where the finished run's checkpoint lies.

    Raises:
        StageError: the run is not finished.
    """
    folder = run.folder(config)
    record = records.read(folder)
    if record is None or record["finished"] is None:
        raise StageError(f"{run.id} is not trained: {folder} holds no finished run. Run the stage `{run.stage}` first.")
    best = State.read(folder).best
    if best is None:
        raise CheckpointError(
            f"{folder} is recorded as finished but names no best checkpoint: delete it and train again"
        )
    return storage.join(folder, best)


def save_generators(file: Path, sums: Tensor | None = None) -> None:
    """Write the state of every random generator that training draws from (SpecAugment uses NumPy's).

    Args:
        sums: the rank's part of the sums of the epoch in progress, kept with them.
    """
    state = {"sums": sums, "torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, file)


def load_generators(file: Path) -> Tensor | None:
    """Restore what `save_generators` wrote; returns its sums."""
    state = torch.load(file, weights_only=False)
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    sums: Tensor | None = state["sums"]
    return sums


def seed_generators(seed: int, rank: int) -> None:
    """Start every generator from the run's seed; ranks differ, so that their dropout does."""
    random.seed(seed * 1000 + rank)
    np.random.seed((seed * 1000 + rank) % 2**32)
    torch.manual_seed(seed * 1000 + rank)
