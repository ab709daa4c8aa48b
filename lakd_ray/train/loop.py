"""Trains one run on this rank: epochs of planned batches, dev after each, the best epoch kept.

Resumable after each epoch, and within epochs every `train.checkpoint_steps` optimizer steps.

Needs an initialised torch process group; `lakd_ray.train.run` provides it by Ray Train, `lakd_ray.tune` by itself.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lakd_ray import metrics, records, storage
from lakd_ray.config import dump
from lakd_ray.data.plan import skip
from lakd_ray.errors import DataError, TrainingError
from lakd_ray.infer.predictor import softmax
from lakd_ray.models import Card, build, save
from lakd_ray.provenance import Provenance
from lakd_ray.train import state as states
from lakd_ray.train.engine import Engine
from lakd_ray.train.feed import Feed
from lakd_ray.train.step import PARTS, Objective, losses

Report = Callable[[dict[str, Any]], None]


@dataclass
class Timer:
    """Seconds since the last reading."""

    started: float

    def lap(self) -> float:
        """Read and start again."""
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        return seconds


def train(feed: Feed, folder: str, made_by: dict[str, Any], parents: list[Provenance], report: Report) -> None:
    """Train a run to its last epoch, from where an earlier attempt stopped.

    Args:
        feed: this rank's data; names the run.
        folder: the run's folder.
        made_by: see `lakd_ray.train.state.made_by`; identifies the run's folder as this run's.
        parents: what the teachers have seen.
        report: called on every rank after each epoch with that epoch's metrics.

    Raises:
        TrainingError: the loss is not a finite number.
        StageError: the folder belongs to another configuration.
    """
    if records.is_done(folder, made_by):
        return
    trainer = Trainer(feed, folder, parents)
    if feed.rank == 0:
        records.start(folder, made_by)
    try:
        trainer.fit(report)
    finally:
        trainer.engine.close()
    if feed.rank == 0:
        resume, trainer.state.resume = trainer.state.resume, None
        trainer.state.write(folder)
        records.finish(folder, made_by, [states.STATE, states.METRICS, f"{trainer.state.best}/{storage.SEAL}"])
        storage.delete(storage.join(folder, str(resume)))
    dist.barrier()


class Trainer:
    """The state of one run in training."""

    def __init__(self, feed: Feed, folder: str, parents: list[Provenance]) -> None:
        self.feed, self.folder, self.run = feed, folder, feed.run
        recipe = feed.run.recipe
        attended = feed.run.loss is not None and feed.run.loss.weighting == "attention"
        model = build(
            recipe.model,
            feed.run.emotions,
            seed=feed.run.seed,
            languages=feed.config.languages,
            teachers=len(feed.run.teachers) if attended else 0,
        )
        aware = recipe.model.language_aware
        self.objective = Objective(
            feed.run.loss, feed.run.teacher_languages, recipe.label_loss, aware.identify if aware else 0.0
        )
        self.layers = {} if model.taken is None else {"layers": list(model.taken)}
        steps = feed.steps_per_epoch * recipe.optim.epochs
        self.engine = Engine(model, recipe.optim, feed.config.train, steps=steps)
        self.provenance = Provenance(feed.manifest.seen(feed.train_rows), feed.manifest.seen(feed.dev_rows)).inherit(
            parents
        )
        states.seed_generators(feed.run.seed, feed.rank)
        self.sums = self._zeros()
        self.state = states.State.read(folder)
        if self.state.resume is not None:
            self._restore(self.state.resume)

    def fit(self, report: Report) -> None:
        """All epochs that are left."""
        timer = Timer(time.perf_counter())
        batches = self.feed.batches(self.state.epoch, self.state.cursor)
        for epoch in range(self.state.epoch, self.run.recipe.optim.epochs):
            skipped = self.state.cursor
            means = self._train_epoch(epoch, batches)
            seconds = timer.lap()
            dev = self._evaluate(batches)
            line = self._line(epoch, skipped, means, seconds, dev, timer.lap())
            self._keep(epoch, line)
            report(line)

    def _train_epoch(self, epoch: int, batches: Any) -> Tensor:
        """What is left of a pass over the training rows; returns the means of its `PARTS` over all ranks."""
        plan = self.feed.epoch(epoch)
        counts = plan.step_counts(self.engine.accumulation)
        every = (self.feed.config.train.checkpoint_steps or len(counts)) * self.engine.accumulation
        last = len(counts) * self.engine.accumulation
        for index in range(self.state.cursor, last):
            arrived, batch = next(batches)
            if (arrived.split, arrived.epoch) != ("train", epoch):
                raise DataError(f"expected a batch of epoch {epoch}, found {arrived.split} of epoch {arrived.epoch}")
            batch = batch.to(self.engine.device, self.engine.dtype)
            parts = losses(self.engine.forward, batch, self.objective)
            self.engine.backward(parts.loss, counts[index // self.engine.accumulation])
            self.engine.step()
            self.sums += parts.detached()
            if (index + 1) % every == 0 and index + 1 < last:
                self._keep_position(index + 1)
        dist.all_reduce(self.sums)
        means, self.sums = (self.sums / sum(counts)).cpu(), self._zeros()
        if not torch.isfinite(means).all():
            raise TrainingError(
                f"{self.run.id}: the loss of epoch {epoch + 1} is {means[0]:.3g}. Lower the learning rate "
                f"(found {self.run.recipe.optim.lr}) or train in fp32; the epochs before are kept."
            )
        return means

    def _zeros(self) -> Tensor:
        return torch.zeros(len(PARTS), dtype=torch.float64, device=self.engine.device)

    def _evaluate(self, batches: Any) -> dict[str, Any]:
        """Scores on dev, every row counted once."""
        rows, logits = [], []
        with self.engine.evaluating():
            for _ in self.feed.dev.batches(self.feed.rank):
                arrived, batch = next(batches)
                batch = batch.to(self.engine.device, self.engine.dtype)
                rows.append(arrived.rows)
                outputs = self.engine.forward(batch.inputs, batch.lengths_B, batch.languages_B)
                logits.append(outputs.logits_BC.float().cpu().numpy())
        gathered: list[Any] = [None] * self.feed.world
        dist.all_gather_object(gathered, (rows, logits))
        rows_N = np.concatenate([part for of_rank in gathered for part in of_rank[0]])
        logits_NC = np.concatenate([part for of_rank in gathered for part in of_rank[1]])
        if len(rows_N) != len(self.feed.dev_rows) or len(np.unique(rows_N)) != len(rows_N):
            raise DataError(f"dev has {len(self.feed.dev_rows)} utterances, but {len(rows_N)} were evaluated")
        return dev_scores(self.feed, rows_N, logits_NC)

    def _line(
        self, epoch: int, skipped: int, means: Tensor, seconds: float, dev: dict[str, Any], dev_seconds: float
    ) -> dict[str, Any]:
        """An epoch's entry in the metrics file; speed is that of the part that was trained in one go."""
        padded, audio = self.feed.seconds(skip(self.feed.epoch(epoch), skipped))
        left = self.run.recipe.optim.epochs - epoch - 1
        parts = {name: mean for name, mean in zip(PARTS, means.tolist(), strict=True) if name in self.objective.parts}
        return {
            "run": self.run.id,
            "epoch": epoch + 1,
            "epochs": self.run.recipe.optim.epochs,
            **parts,
            "lr": self.engine.learning_rate,
            **dev,
            "seconds": seconds,
            "dev_seconds": dev_seconds,
            "audio_seconds": audio,
            "audio_seconds_per_second": audio / seconds,
            "padding": 1 - audio / padded,
            "seconds_left": left * (seconds + dev_seconds),
        }

    def _keep(self, epoch: int, line: dict[str, Any]) -> None:
        """Publish the epoch: checkpoint if it is the best, state to resume from, then the pointer to both."""
        old = self.state
        score = (line["dev_UR"], -line["dev_ce"])
        better = score > old.best_score
        best = f"best-{epoch + 1:04d}" if better else old.best
        if better:
            self._save_checkpoint(str(best), line)
        resume = f"resume-{epoch + 1:04d}"
        self._save_resume(resume)
        self._publish(states.State(epoch + 1, resume, best, score if better else old.best_score, [*old.metrics, line]))

    def _keep_position(self, cursor: int) -> None:
        """Publish the state within an epoch."""
        resume = f"resume-{self.state.epoch:04d}-{cursor:05d}"
        self._save_resume(resume)
        self._publish(replace(self.state, cursor=cursor, resume=resume))

    def _publish(self, state: states.State) -> None:
        """Make this the run's state, and only then delete what the one before needed."""
        old, self.state = self.state, state
        if self.feed.rank == 0:
            state.write(self.folder)
            for name in {old.resume, old.best} - {state.resume, state.best, None}:
                storage.delete(storage.join(self.folder, str(name)))
        dist.barrier()

    def _save_checkpoint(self, name: str, line: dict[str, Any]) -> None:
        network, weights = self.engine.weights()
        if self.feed.rank != 0:
            return
        card = Card(
            model_id=f"{self.feed.config.name}/{self.run.id}",
            emotions=self.run.emotions,
            languages=self.run.languages,
            provenance=self.provenance,
            training={"run": dump(self.run), "dev": line, **self.layers},
        )
        with tempfile.TemporaryDirectory(prefix="lakd-") as scratch:
            save(storage.join(self.folder, name), network, card, scratch=Path(scratch), state=weights)

    def _save_resume(self, name: str) -> None:
        """Every rank writes its part; the first seals the whole."""
        location = storage.join(self.folder, name)
        if self.feed.rank == 0:
            storage.unseal(location)
        dist.barrier()
        with tempfile.TemporaryDirectory(prefix="lakd-") as scratch:
            self.engine.save(Path(scratch))
            states.save_generators(Path(scratch, f"generators-{self.feed.rank}.pt"), self.sums.cpu())
            part = storage.copy_into(Path(scratch), location)
        parts: list[Any] = [None] * self.feed.world
        dist.all_gather_object(parts, part)
        if self.feed.rank == 0:
            storage.seal(location, parts)

    def _restore(self, name: str) -> None:
        with storage.fetched_folder(storage.join(self.folder, name)) as source:
            self.engine.load(source)
            sums = states.load_generators(source / f"generators-{self.feed.rank}.pt")
        if sums is not None:
            self.sums = sums.to(self.engine.device)


def dev_scores(feed: Feed, rows_N: Any, logits_NC: Any) -> dict[str, Any]:
    """UR of each language, their mean (which chooses the epoch), pooled WR and mean cross-entropy."""
    labels_N = feed.manifest.labels_N[rows_N]
    languages_N = feed.manifest.languages_N[rows_N].astype(str)
    probabilities_NC = softmax(logits_NC)
    recall = {
        code: metrics.score(probabilities_NC[languages_N == code], labels_N[languages_N == code], feed.run.emotions).UR
        for code in feed.run.languages
    }
    chosen_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    return {
        "dev_UR": float(np.mean(list(recall.values()))),
        "dev_WR": metrics.score(probabilities_NC, labels_N, feed.run.emotions).WR,
        "dev_ce": float(-np.log(np.maximum(chosen_N, 1e-12)).mean()),
        "dev_recall": recall,
    }
