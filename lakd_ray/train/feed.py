"""What each rank trains and evaluates on: plans, teacher logits, and the stream turned into tensors."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from lakd_ray.config import Experiment
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.data.plan import Epoch, Window, evaluation_epoch, padded_seconds, skip, training_epoch
from lakd_ray.data.stream import AudioBatch, Source, stream
from lakd_ray.distill import class_weights
from lakd_ray.errors import SplitError
from lakd_ray.models import pad
from lakd_ray.runs import Run
from lakd_ray.train.step import Batch


@dataclass(frozen=True, eq=False)
class Feed:
    """One rank's view of a run's data."""

    run: Run
    config: Experiment
    manifest: Manifest
    teacher_logits_NKC: Tensor | None
    rank: int
    world: int
    source: Source | None = None
    """Cached features to train on; the shards' audio if None."""

    @cached_property
    def train_rows(self) -> Rows:
        """Rows the run is trained on."""
        rows, without = self._rows("train"), self.run.without
        return rows[self.manifest.parts(rows, without.of) != without.number] if without else rows

    @cached_property
    def dev_rows(self) -> Rows:
        """Rows its epoch is chosen on."""
        return self._rows("dev")

    @cached_property
    def class_weights(self) -> Tensor | None:
        """Weight of each class, by its utterances among all rows trained on, shape [C]; None if all are alike."""
        balance = self.run.recipe.label_loss.class_balance
        counts_C = np.bincount(self.manifest.labels_N[self.train_rows], minlength=len(self.run.emotions))
        return class_weights(torch.from_numpy(counts_C), balance).float() if balance else None

    def _rows(self, split: str) -> Rows:
        rows = self.manifest.rows(split, self.run.languages)
        if not len(rows):
            raise SplitError(f"{self.run.id}: no {split} utterances in {', '.join(self.run.languages)}")
        return rows

    @lru_cache(maxsize=4)  # noqa: B019 -- a feed lives as long as its run
    def epoch(self, number: int) -> Epoch:
        """The training plan of an epoch, all ranks."""
        return training_epoch(
            self.manifest,
            self.train_rows,
            self.config.batch,
            seed=self.run.seed,
            epoch=number,
            world=self.world,
            accumulation=self.config.train.accumulation,
        )

    @cached_property
    def dev(self) -> Epoch:
        """The evaluation plan, all ranks."""
        return evaluation_epoch(self.manifest, self.dev_rows, self.config.batch, world=self.world)

    @property
    def dev_batches(self) -> tuple[int, int]:
        """Number of this rank's dev batches, and of those of the rank that has most."""
        counts = [sum(1 for _ in self.dev.batches(rank)) for rank in range(self.world)]
        return counts[self.rank], max(counts)

    @property
    def silence(self) -> Batch:
        """A batch of one utterance that is none, for a forward pass whose answer nobody takes."""
        frames, channels = 50, 0 if self.source is None else self.source.channels
        inputs = torch.zeros(1, 16_000) if self.source is None else torch.zeros(1, frames, channels)
        return Batch(inputs, torch.tensor([inputs.shape[1]]), torch.zeros(1, dtype=torch.long), ("",))

    def names(self, rows: Rows) -> list[str]:
        """Utterances of some rows."""
        return [str(name) for name in self.manifest.table["utterance"].take(rows).to_pylist()]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in the first epoch; later ones may differ by a few, as their batches do."""
        return sum(1 for _ in self.epoch(0).batches(0)) // self.config.train.accumulation

    def batches(self, first_epoch: int, cursor: int = 0) -> Iterator[tuple[AudioBatch, Batch]]:
        """This rank's training batches of every epoch from one on, each epoch's followed by its dev batches.

        Reading begins with this call.

        Args:
            cursor: batches at the start of the first epoch that are left out, and not read.
        """
        tune = self.config.tune
        readers = max(self.world * self.config.train.side_by_side, tune.concurrent * tune.workers_per_trial)
        windows = self._windows(first_epoch, cursor)
        arriving = stream(self.manifest, windows, source=self.source, readers=readers)
        return ((arrived, self.tensors(arrived)) for arrived in arriving)

    def _windows(self, first_epoch: int, cursor: int) -> Iterator[Window]:
        for number in range(first_epoch, self.run.recipe.optim.epochs):
            yield from skip(self.epoch(number), cursor if number == first_epoch else 0).windows[self.rank]
            yield from self.dev.windows[self.rank]

    def tensors(self, arrived: AudioBatch) -> Batch:
        """A batch as the model wants it."""
        inputs, lengths_B = pad([torch.from_numpy(signal) for signal in arrived.signals])
        if torch.cuda.is_available():
            inputs = inputs.pin_memory()  # so that copying it does not wait
        labels_B = torch.from_numpy(self.manifest.labels_N[arrived.rows])
        teachers, weights_C = self.teacher_logits_NKC, self.class_weights
        codes = [str(code) for code in self.manifest.languages_N[arrived.rows]]
        aware = self.run.recipe.model.language_aware is not None
        return Batch(
            inputs=inputs,
            lengths_B=lengths_B,
            labels_B=labels_B,
            languages=codes,
            languages_B=torch.tensor([self.config.languages.index(code) for code in codes]) if aware else None,
            teacher_logits_BKC=None if teachers is None else teachers[torch.from_numpy(arrived.rows)],
            label_weights_B=None if weights_C is None else weights_C[labels_B],
        )

    def seconds(self, epoch: Epoch) -> tuple[float, float]:
        """Audio seconds of an epoch on all ranks: with padding, and without."""
        batches = [batch for rank in range(self.world) for batch in epoch.batches(rank)]
        return padded_seconds(self.manifest, batches)
