"""What a training run leaves in its folder, and how it goes on after an interruption.

    <run folder>/
      record.json       what makes the run; written first, and again when it is finished
      metrics.jsonl     one line per epoch
      state.json        points at the newest complete resume folder and the best checkpoint; replaced at once or not
      resume-0007/      engine state after epoch 7, random generators of every rank
      resume-0007-00120/  the same after 120 more batches of the epoch that follows
      best-0005/        checkpoint of one of the best epochs so far (transformers format)

`state.json` is written after the folders that it names are sealed, so a crash at any moment leaves the epoch before.
`train.keep_states` of the newest states are kept: should one be damaged, the one before it is used.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Position:
    """A state that training can go on from: its place in the data is (seed, epoch, cursor)."""

    epoch: int = 0
    """Epochs done."""
    cursor: int = 0
    """Batches of the next epoch that each rank has trained on already."""
    resume: str | None = None
    """Folder with the engine's state; None at the start, and when all is done."""
    world: int = 1
    """Ranks that wrote it."""


@dataclass(frozen=True)
class State:
    """How far a run has come."""

    at: Position = Position()
    """The newest position."""
    earlier: tuple[Position, ...] = ()
    """Those before it that are kept, newest first."""
    metrics: tuple[dict[str, Any], ...] = ()
    """One entry per epoch."""

    @property
    def best(self) -> str | None:
        """Folder of the best epoch's checkpoint."""
        return next(iter(self.ranked(1)), None)

    @property
    def best_score(self) -> tuple[float, float]:
        """(dev UR, minus dev cross-entropy) of the best epoch: the loss breaks ties."""
        return max(map(_score, self.metrics), default=(-1.0, 0.0))

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        return len(self.metrics) - _order(self.metrics)[0] - 1 if self.metrics else 0

    def ranked(self, count: int, epochs: int | None = None) -> list[str]:
        """Folders of the best epochs' checkpoints, the best first, among the first so many."""
        return [checkpoint_name(index + 1) for index in _order(self.metrics[:epochs])[:count]]

    def after(self, position: Position, line: dict[str, Any] | None, *, keep: int) -> "State":
        """The state at a new position, with the epoch's entry if it ends one.

        Args:
            keep: positions to keep, the new one among them. The end of an epoch is kept beyond that if none is among
                them: only there can another number of workers go on.
        """
        before = [self.at, *self.earlier] if self.at.resume else []
        kept = before[: keep - 1]
        if position.cursor and all(each.cursor for each in kept):
            kept += [each for each in before[keep - 1 :] if not each.cursor][:1]
        return State(position, tuple(kept), self.metrics if line is None else (*self.metrics, line))

    def back(self) -> "State":
        """The state at the position before, a fresh one if none is kept."""
        if not self.earlier:
            return State()
        at, *earlier = self.earlier
        return State(at, tuple(earlier), self.metrics[: at.epoch])

    def folders(self, keep_best: int) -> set[str]:
        """Names of the folders that this state needs, or one of those before it."""
        positions = [self.at, *self.earlier]
        best = {name for position in positions for name in self.ranked(keep_best, position.epoch)}
        return best | {position.resume for position in positions if position.resume}

    def write(self, folder: str, keep_best: int = 1) -> None:
        """Make this the run's state."""
        lines = "".join(json.dumps(line) + "\n" for line in self.metrics)
        told = {"best": self.best, "folders": sorted(self.folders(keep_best))}
        storage.write_json(storage.join(folder, STATE), told | asdict(self))
        storage.write_bytes(storage.join(folder, METRICS), lines.encode())

    @classmethod
    def read(cls, folder: str) -> "State":
        """The run's state, a fresh one if it has not finished an epoch."""
        if not storage.exists(storage.join(folder, STATE)):
            return cls()
        content = storage.read_json(storage.join(folder, STATE))
        at, *earlier = (Position(**each) for each in [content["at"], *content["earlier"]])
        return cls(at, tuple(earlier), tuple(content["metrics"]))


def checkpoint_name(epoch: int) -> str:
    """Folder of an epoch's checkpoint."""
    return f"best-{epoch:04d}"


def _score(line: dict[str, Any]) -> tuple[float, float]:
    return line["dev_UR"], -line["dev_ce"]


def _order(metrics: Sequence[dict[str, Any]]) -> list[int]:
    """Places of the epochs by what dev says, the best first; the earlier of two alike."""
    return sorted(range(len(metrics)), key=lambda index: _score(metrics[index]), reverse=True)


def made_by(run: Run, config: Experiment, inputs: dict[str, str]) -> dict[str, Any]:
    """What a run's weights depend on.

    Args:
        inputs: digests of the data and of the teachers' logits.
    """
    train = dump(config.train)
    # not the number of workers: a run may go on with others, and says so
    shaping = ("engine", "zero_stage", "precision", "accumulation", "cpus_per_worker", "gpu", "cached_features")
    return {
        "run": {key: value for key, value in dump(run).items() if key not in ("id", "stage", "variant")},
        "batch": dump(config.batch),
        "train": {key: train[key] for key in shaping} | ({"compile": True} if train["compile"] else {}),
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
