"""What a training run leaves in its folder, and how it goes on after an interruption.

    <run folder>/
      record.json       what makes the run; written first, and again when it is finished
      metrics.jsonl     one line per epoch
      state.json        points at the newest complete resume folder and the best checkpoint; replaced at once or not
      resume-0007/      engine state after epoch 7, random generators of every rank
      resume-0007-00120/  the same after 120 more batches of the epoch that follows
      best-0005/        checkpoint of one of the best epochs so far (transformers format)

`state.json` is written after the folders that it names are sealed, so a crash at any moment leaves the epoch before.
`train.keep_resume_states` of the newest states are kept: should one be damaged, the one before it is used.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment, to_dict
from lakd_ray.errors import CheckpointError, StageError
from lakd_ray.runs import record as records
from lakd_ray.runs.graph import Run
from lakd_ray.runs.layout import METRICS_FILE, STATE_FILE, checkpoint_name


@dataclass(frozen=True)
class ResumePoint:
    """A state that training can go on from: its place in the data is (seed, epoch, cursor)."""

    epoch: int = 0
    """Epochs done."""
    cursor: int = 0
    """Batches of the next epoch that each rank has trained on already."""
    resume_folder: str | None = None
    """Folder with the engine's state; None at the start, and when all is done."""
    world_size: int = 1
    """Ranks that wrote it."""


@dataclass(frozen=True)
class RunState:
    """How far a run has come."""

    latest: ResumePoint = ResumePoint()
    """The newest position."""
    previous: tuple[ResumePoint, ...] = ()
    """Those before it that are kept, newest first."""
    metrics: tuple[dict[str, Any], ...] = ()
    """One entry per epoch."""

    @property
    def best_checkpoint_name(self) -> str | None:
        """Folder of the best epoch's checkpoint."""
        return next(iter(self.best_checkpoints(1)), None)

    @property
    def best_dev_score(self) -> tuple[float, float]:
        """(dev UR, minus dev cross-entropy) of the best epoch: the loss breaks ties."""
        return max(map(_dev_score, self.metrics), default=(-1.0, 0.0))

    @property
    def epochs_since_best(self) -> int:
        """Epochs since the best one."""
        return len(self.metrics) - _rank_epochs(self.metrics)[0] - 1 if self.metrics else 0

    def best_checkpoints(self, count: int, epochs: int | None = None) -> list[str]:
        """Folders of the best epochs' checkpoints, the best first, among the first so many."""
        return [checkpoint_name(index + 1) for index in _rank_epochs(self.metrics[:epochs])[:count]]

    def advance(
        self, resume_point: ResumePoint, epoch_metrics: dict[str, Any] | None, *, keep_resume_states: int
    ) -> "RunState":
        """The state at a new position, with the epoch's entry if it ends one.

        Args:
            keep: positions to keep, the new one among them. The end of an epoch is kept beyond that if none is among
                them: only there can another number of workers go on.
        """
        before = [self.latest, *self.previous] if self.latest.resume_folder else []
        kept = before[: keep_resume_states - 1]
        if resume_point.cursor and all(each.cursor for each in kept):
            kept += [each for each in before[keep_resume_states - 1 :] if not each.cursor][:1]
        return RunState(
            resume_point, tuple(kept), self.metrics if epoch_metrics is None else (*self.metrics, epoch_metrics)
        )

    def rollback(self) -> "RunState":
        """The state at the position before, a fresh one if none is kept."""
        if not self.previous:
            return RunState()
        at, *earlier = self.previous
        return RunState(at, tuple(earlier), self.metrics[: at.epoch])

    def referenced_folders(self, keep_checkpoints: int) -> set[str]:
        """Names of the folders that this state needs, or one of those before it."""
        positions = [self.latest, *self.previous]
        best = {name for position in positions for name in self.best_checkpoints(keep_checkpoints, position.epoch)}
        return best | {position.resume_folder for position in positions if position.resume_folder}

    def write(self, folder: str, keep_checkpoints: int = 1) -> None:
        """Make this the run's state."""
        lines = "".join(json.dumps(line) + "\n" for line in self.metrics)
        told = {"best": self.best_checkpoint_name, "folders": sorted(self.referenced_folders(keep_checkpoints))}
        storage.write_json(storage.join(folder, STATE_FILE), told | asdict(self))
        storage.write_bytes(storage.join(folder, METRICS_FILE), lines.encode())

    @classmethod
    def read(cls, folder: str) -> "RunState":
        """The run's state, a fresh one if it has not finished an epoch."""
        if not storage.exists(storage.join(folder, STATE_FILE)):
            return cls()
        content = storage.read_json(storage.join(folder, STATE_FILE))
        at, *earlier = (ResumePoint(**each) for each in [content["latest"], *content["previous"]])
        return cls(at, tuple(earlier), tuple(content["metrics"]))


def _dev_score(epoch_metrics: dict[str, Any]) -> tuple[float, float]:
    return epoch_metrics["dev_UR"], -epoch_metrics["dev_ce"]


def _rank_epochs(metrics: Sequence[dict[str, Any]]) -> list[int]:
    """Places of the epochs by what dev says, the best first; the earlier of two alike."""
    return sorted(range(len(metrics)), key=lambda index: _dev_score(metrics[index]), reverse=True)


def fingerprint_inputs(run: Run, config: Experiment, inputs: dict[str, str]) -> dict[str, Any]:
    """What a run's weights depend on.

    Args:
        inputs: digests of the data and of the teachers' logits.
    """
    train = to_dict(config.train)
    # not the number of workers: a run may go on with others, and says so
    shaping = (
        "engine",
        "zero_stage",
        "precision",
        "gradient_accumulation_steps",
        "cpus_per_worker",
        "gpu",
        "cache_features",
    )
    return {
        "run": {key: value for key, value in to_dict(run).items() if key not in ("id", "stage", "variant")},
        "batch": to_dict(config.batch),
        "train": {key: train[key] for key in shaping} | ({"compile": True} if train["compile"] else {}),
        "splits": {corpus.name: to_dict(corpus.split) for corpus in config.corpora},
        "inputs": inputs,
    }


def select_best_run(runs: Sequence[Run], config: Experiment) -> Run:
    """Return the run with the best score on dev; the endpoint serves the student that this selects."""
    return max(runs, key=lambda run: RunState.read(run.folder(config)).best_dev_score)


def find_best_checkpoint(run: Run, config: Experiment) -> str:
    """Where the finished run's checkpoint lies.

    Raises:
        StageError: the run is not finished.
    """
    folder = run.folder(config)
    record = records.read_record(folder)
    if record is None or record["finished"] is None:
        raise StageError(f"{run.id} is not trained: {folder} holds no finished run. Run the stage `{run.stage}` first.")
    best = RunState.read(folder).best_checkpoint_name
    if best is None:
        raise CheckpointError(
            f"{folder} is recorded as finished but names no best checkpoint: delete it and train again"
        )
    return storage.join(folder, best)
