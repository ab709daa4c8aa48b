"""Load the data of one rank: batch plans, teacher logits, and batches as tensors."""

from collections.abc import Callable, Iterator
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
from lakd_ray.distill import class_weights, match_languages
from lakd_ray.errors import SplitError
from lakd_ray.models import EmotionClassifier, pad_batch
from lakd_ray.models.spec_augment import SpecAugmentMasks
from lakd_ray.runs.graph import Run
from lakd_ray.train.step import TrainBatch


@dataclass(frozen=True, eq=False)
class RankDataLoader:
    """Provide the training and dev batches of a run to one rank."""

    run: Run
    config: Experiment
    manifest: Manifest
    teacher_logits_NKC: Tensor | None
    rank: int
    world_size: int
    feature_source: ShardSource | None = None
    """Shards of cached features to read; the manifest's audio shards if None."""

    @cached_property
    def train_rows(self) -> RowIndices:
        """Manifest rows that the run trains on."""
        rows, fold = self._rows("train"), self.run.held_out_fold
        return rows[self.manifest.speaker_folds(rows, fold.num_cross_fit_folds) != fold.index] if fold else rows

    @cached_property
    def dev_rows(self) -> RowIndices:
        """Manifest rows that select the best epoch."""
        return self._rows("dev")

    @cached_property
    def class_weights(self) -> Tensor | None:
        """Weight of each class by its frequency in the training rows, shape [C]; None without class balancing."""
        balance = self.run.recipe.label_loss.class_balance
        counts_C = np.bincount(self.manifest.labels_N[self.train_rows], minlength=len(self.run.emotions))
        return class_weights(torch.from_numpy(counts_C), balance).float() if balance else None

    def _rows(self, split: str) -> RowIndices:
        rows = self.manifest.rows(split, self.run.languages)
        if not len(rows):
            languages = ", ".join(self.run.languages)
            raise SplitError(f"{self.run.id}: no {split} utterances in {languages}: check the corpora and their splits")
        return rows

    @cached_property
    def epoch_plan(self) -> Callable[[int], EpochPlan]:
        """Return the training plan of an epoch for all ranks."""

        @lru_cache(maxsize=4)  # of this loader; a cache of the class would keep the loaders of earlier runs
        def plan(epoch: int) -> EpochPlan:
            return plan_training_epoch(
                self.manifest,
                self.train_rows,
                self.config.batch,
                seed=self.run.seed,
                epoch=epoch,
                world_size=self.world_size,
                gradient_accumulation_steps=self.config.train.gradient_accumulation_steps,
            )

        return plan

    @cached_property
    def dev_plan(self) -> EpochPlan:
        """The evaluation plan of dev for all ranks."""
        return plan_evaluation_epoch(self.manifest, self.dev_rows, self.config.batch, world_size=self.world_size)

    @property
    def dev_batch_counts(self) -> tuple[int, int]:
        """Number of dev batches of this rank, and the maximum over all ranks."""
        counts = [sum(1 for _ in self.dev_plan.batches(rank)) for rank in range(self.world_size)]
        return counts[self.rank], max(counts)

    @property
    def dummy_batch(self) -> TrainBatch:
        """A dummy batch of one utterance, for a forward pass whose output is discarded."""
        frames, channels = 50, 0 if self.feature_source is None else self.feature_source.feature_dim
        inputs = torch.zeros(1, 16_000) if self.feature_source is None else torch.zeros(1, frames, channels)
        return TrainBatch(inputs, torch.tensor([inputs.shape[1]]), torch.zeros(1, dtype=torch.long), ("",))

    def utterance_ids(self, rows: RowIndices) -> list[str]:
        """Return the utterance ids of the given rows."""
        return [str(name) for name in self.manifest.table["utterance"].take(rows).to_pylist()]

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in the first epoch; later epochs may differ by a few."""
        return sum(1 for _ in self.epoch_plan(0).batches(0)) // self.config.train.gradient_accumulation_steps

    def audio_batches(self, first_epoch: int, skipped_batches: int = 0) -> Iterator[AudioBatch]:
        """Return this rank's batches from the first epoch on: of each epoch the training batches, then the dev batches.

        Reading starts with this call, not with the first `next`. `collate` converts the batches.

        Args:
            first_epoch: index of the first epoch.
            skipped_batches: number of batches to skip at the start of the first epoch; they are not read.
        """
        tune = self.config.tune
        readers = max(
            self.world_size * self.config.train.parallel_runs, tune.max_concurrent_trials * tune.workers_per_trial
        )
        groups = self._read_groups(first_epoch, skipped_batches)
        cpus = self.config.train.reader_cpus_per_worker
        return stream_batches(self.manifest, groups, source=self.feature_source, num_cpus=cpus, num_readers=readers)

    def _read_groups(self, first_epoch: int, skipped_batches: int) -> Iterator[ReadGroup]:
        for epoch in range(first_epoch, self.run.recipe.optim.epochs):
            plan = skip_batches(self.epoch_plan(epoch), skipped_batches if epoch == first_epoch else 0)
            yield from plan.read_groups[self.rank]
            yield from self.dev_plan.read_groups[self.rank]

    def collate(self, raw_batch: AudioBatch, model: EmotionClassifier | None = None) -> TrainBatch:
        """Convert a batch of NumPy signals to the tensors that a step needs, on the CPU.

        Args:
            raw_batch: the signals.
            model: plans the masks of SpecAugment for a training batch; None: no masks.
        """
        inputs, lengths_B = pad_batch([torch.from_numpy(signal) for signal in raw_batch.signals])
        labels_B = torch.from_numpy(self.manifest.labels_N[raw_batch.rows])
        teachers, weights_C = self.teacher_logits_NKC, self.class_weights
        codes = [str(code) for code in self.manifest.languages_N[raw_batch.rows]]
        is_language_aware = self.run.recipe.model.language_aware is not None
        return TrainBatch(
            inputs=inputs,
            lengths_B=lengths_B,
            labels_B=labels_B,
            languages=codes,
            languages_B=torch.tensor([self.config.languages.index(code) for code in codes])
            if is_language_aware
            else None,
            teacher_logits_BKC=None if teachers is None else teachers[torch.from_numpy(raw_batch.rows)],
            label_weights_B=None if weights_C is None else weights_C[labels_B],
            same_language_BK=None if teachers is None else match_languages(codes, self.run.teacher_languages),
            spec_augment=self._plan_spec_augment(raw_batch, lengths_B, model),
        )

    def _plan_spec_augment(
        self, raw_batch: AudioBatch, lengths_B: Tensor, model: EmotionClassifier | None
    ) -> SpecAugmentMasks | None:
        """Draw masks from the run's seed, the epoch and the utterances; None for a batch of dev."""
        if model is None or raw_batch.split != "train":
            return None
        num_frames_B = lengths_B if self.feature_source is not None else model.count_frames(lengths_B)
        seeds = [(self.run.seed, raw_batch.epoch, row) for row in raw_batch.rows.tolist()]
        return model.plan_spec_augment(num_frames_B.tolist(), seeds)

    def audio_seconds(self, plan: EpochPlan) -> tuple[float, float]:
        """Return the audio seconds of an epoch over all ranks, (with padding, without padding)."""
        batches = [batch for rank in range(self.world_size) for batch in plan.batches(rank)]
        return padded_and_unpadded_seconds(self.manifest, batches)
