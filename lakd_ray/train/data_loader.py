"""What each rank trains and evaluates on: plans, teacher logits, and the stream turned into tensors."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from lakd_ray.config import Experiment
from lakd_ray.data.batch_plan import (
    EpochPlan,
    ReadGroup,
    padded_and_unpadded_seconds,
    plan_evaluation_epoch,
    plan_training_epoch,
    skip_batches,
)
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.data.reader import AudioBatch, ShardSource, stream_batches
from lakd_ray.distill import class_weights
from lakd_ray.errors import SplitError
from lakd_ray.models import pad_batch
from lakd_ray.runs.graph import Run
from lakd_ray.train.step import TrainBatch


@dataclass(frozen=True, eq=False)
class RankDataLoader:
    """One rank's view of a run's data."""

    run: Run
    config: Experiment
    manifest: Manifest
    teacher_logits_NKC: Tensor | None
    rank: int
    world_size: int
    feature_source: ShardSource | None = None
    """Cached features to train on; the shards' audio if None."""

    @cached_property
    def train_rows(self) -> RowIndices:
        """Rows the run is trained on."""
        rows, without = self._rows("train"), self.run.held_out_fold
        return rows[self.manifest.speaker_folds(rows, without.num_folds) != without.index] if without else rows

    @cached_property
    def dev_rows(self) -> RowIndices:
        """Rows its epoch is chosen on."""
        return self._rows("dev")

    @cached_property
    def class_weights(self) -> Tensor | None:
        """Weight of each class, by its utterances among all rows trained on, shape [C]; None if all are alike."""
        balance = self.run.recipe.label_loss.class_balance
        counts_C = np.bincount(self.manifest.labels_N[self.train_rows], minlength=len(self.run.emotions))
        return class_weights(torch.from_numpy(counts_C), balance).float() if balance else None

    def _rows(self, split: str) -> RowIndices:
        rows = self.manifest.rows(split, self.run.languages)
        if not len(rows):
            raise SplitError(f"{self.run.id}: no {split} utterances in {', '.join(self.run.languages)}")
        return rows

    @lru_cache(maxsize=4)  # noqa: B019 -- a feed lives as long as its run
    def epoch_plan(self, epoch: int) -> EpochPlan:
        """The training plan of an epoch, all ranks."""
        return plan_training_epoch(
            self.manifest,
            self.train_rows,
            self.config.batch,
            seed=self.run.seed,
            epoch=epoch,
            world_size=self.world_size,
            gradient_accumulation_steps=self.config.train.gradient_accumulation_steps,
        )

    @cached_property
    def dev_plan(self) -> EpochPlan:
        """The evaluation plan, all ranks."""
        return plan_evaluation_epoch(self.manifest, self.dev_rows, self.config.batch, world_size=self.world_size)

    @property
    def dev_batch_counts(self) -> tuple[int, int]:
        """Number of this rank's dev batches, and of those of the rank that has most."""
        counts = [sum(1 for _ in self.dev_plan.batches(rank)) for rank in range(self.world_size)]
        return counts[self.rank], max(counts)

    @property
    def dummy_batch(self) -> TrainBatch:
        """A batch of one utterance that is none, for a forward pass whose answer nobody takes."""
        frames, channels = 50, 0 if self.feature_source is None else self.feature_source.feature_dim
        inputs = torch.zeros(1, 16_000) if self.feature_source is None else torch.zeros(1, frames, channels)
        return TrainBatch(inputs, torch.tensor([inputs.shape[1]]), torch.zeros(1, dtype=torch.long), ("",))

    def utterance_ids(self, rows: RowIndices) -> list[str]:
        """Utterances of some rows."""
        return [str(name) for name in self.manifest.table["utterance"].take(rows).to_pylist()]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in the first epoch; later ones may differ by a few, as their batches do."""
        return sum(1 for _ in self.epoch_plan(0).batches(0)) // self.config.train.gradient_accumulation_steps

    def batches(self, first_epoch: int, cursor: int = 0) -> Iterator[tuple[AudioBatch, TrainBatch]]:
        """This rank's training batches of every epoch from one on, each epoch's followed by its dev batches.

        Reading begins with this call.

        Args:
            cursor: batches at the start of the first epoch that are left out, and not read.
        """
        tune = self.config.tune
        readers = max(
            self.world_size * self.config.train.parallel_runs, tune.max_concurrent_trials * tune.workers_per_trial
        )
        windows = self._read_groups(first_epoch, cursor)
        arriving = stream_batches(self.manifest, windows, source=self.feature_source, num_readers=readers)
        return ((arrived, self.collate(arrived)) for arrived in arriving)

    def _read_groups(self, first_epoch: int, cursor: int) -> Iterator[ReadGroup]:
        for number in range(first_epoch, self.run.recipe.optim.epochs):
            yield from skip_batches(self.epoch_plan(number), cursor if number == first_epoch else 0).read_groups[
                self.rank
            ]
            yield from self.dev_plan.read_groups[self.rank]

    def collate(self, raw_batch: AudioBatch) -> TrainBatch:
        """A batch as the model wants it."""
        inputs, lengths_B = pad_batch([torch.from_numpy(signal) for signal in raw_batch.signals])
        if torch.cuda.is_available():
            inputs = inputs.pin_memory()  # so that copying it does not wait
        labels_B = torch.from_numpy(self.manifest.labels_N[raw_batch.rows])
        teachers, weights_C = self.teacher_logits_NKC, self.class_weights
        codes = [str(code) for code in self.manifest.languages_N[raw_batch.rows]]
        aware = self.run.recipe.model.language_aware is not None
        return TrainBatch(
            inputs=inputs,
            lengths_B=lengths_B,
            labels_B=labels_B,
            languages=codes,
            languages_B=torch.tensor([self.config.languages.index(code) for code in codes]) if aware else None,
            teacher_logits_BKC=None if teachers is None else teachers[torch.from_numpy(raw_batch.rows)],
            label_weights_B=None if weights_C is None else weights_C[labels_B],
        )

    def audio_seconds(self, plan: EpochPlan) -> tuple[float, float]:
        """Audio seconds of an epoch on all ranks: with padding, and without."""
        batches = [batch for rank in range(self.world_size) for batch in plan.batches(rank)]
        return padded_and_unpadded_seconds(self.manifest, batches)
