"""Trains one run on this rank: epochs of planned batches, dev after each, the best epoch kept.

Resumable after each epoch, and within epochs every `train.checkpoint_steps` optimizer steps.

Needs an initialised torch process group; `lakd_ray.train.run` provides it by Ray Train, `lakd_ray.tune` by itself.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lakd_ray import metrics, records, storage
from lakd_ray.config import dump
from lakd_ray.data.plan import skip
from lakd_ray.data.stream import AudioBatch
from lakd_ray.errors import DataError
from lakd_ray.infer.predictor import softmax
from lakd_ray.models import Card, build, write
from lakd_ray.provenance import Provenance
from lakd_ray.train import engines
from lakd_ray.train import state as states
from lakd_ray.train.feed import Feed
from lakd_ray.train.flops import peak_flops, step_flops
from lakd_ray.train.meter import Check, Stopwatch, peak_memory_mb
from lakd_ray.train.saving import Publisher, restore
from lakd_ray.train.state import Position, State
from lakd_ray.train.step import PARTS, Batch, Objective, losses

Report = Callable[[dict[str, Any]], None]
Batches = Iterator[tuple[AudioBatch, Batch]]
# Asking is a barrier over all ranks, and spot machines are taken away with tens of seconds of notice.
_ASK_STEPS = 10


def _never() -> bool:
    return False


def train(
    feed: Feed,
    folder: str,
    made_by: dict[str, Any],
    parents: list[Provenance],
    report: Report,
    *,
    tell: Callable[[str], None] = print,
    leaving: Callable[[], bool] = _never,
) -> None:
    """Train a run to its end, from where an earlier attempt stopped.

    Args:
        feed: this rank's data; names the run.
        folder: the run's folder.
        made_by: see `lakd_ray.train.state.made_by`; identifies the run's folder as this run's.
        parents: what the teachers have seen.
        report: called on every rank after each epoch with that epoch's metrics.
        tell: called on the first rank with a sentence that people should read.
        leaving: whether a machine is about to be taken away, the same on all ranks, which all ask; the state is saved
            then at once.

    Raises:
        TrainingError: the loss is not a finite number.
        StageError: the folder belongs to another configuration.
        StorageError: what should be saved cannot be.
    """
    if records.is_done(folder, made_by):
        return
    trainer = Trainer(feed, folder, parents, tell if feed.rank == 0 else lambda _: None, leaving)
    if feed.rank == 0:
        records.start(folder, made_by)
    try:
        trainer.fit(report)
    finally:
        trainer.engine.close()
    if feed.rank == 0:
        _finish(trainer.state, folder, made_by, feed.config.train.keep_best)
    dist.barrier()


def _finish(state: State, folder: str, made_by: dict[str, Any], keep_best: int) -> None:
    """Nothing is to be resumed any more."""
    ended = State(Position(state.at.epoch, world=state.at.world), metrics=state.metrics)
    ended.write(folder, keep_best)
    records.finish(folder, made_by, [states.STATE, states.METRICS, f"{ended.best}/{storage.SEAL}"])
    for name in state.folders(keep_best) - ended.folders(keep_best):
        storage.delete(storage.join(folder, name))


class Trainer:
    """The state of one run in training."""

    def __init__(
        self,
        feed: Feed,
        folder: str,
        parents: list[Provenance],
        tell: Callable[[str], None],
        leaving: Callable[[], bool],
    ) -> None:
        self.feed, self.folder, self.run, self.leaving = feed, folder, feed.run, leaving
        recipe, settings = feed.run.recipe, feed.config.train
        found = State.read(folder)
        self._begun = found.at
        # reading takes seconds to begin, as do the model's and the engine's libraries to load
        self._batches = feed.batches(found.at.epoch, found.at.cursor)
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
        self.flops = step_flops(model, cached=feed.source is not None)
        self.layers = {} if model.taken is None else {"layers": list(model.taken)}
        steps = feed.steps_per_epoch * recipe.optim.epochs
        self.engine = engines.make(model, recipe.optim, settings, steps=steps)
        self.provenance = Provenance(feed.manifest.seen(feed.train_rows), feed.manifest.seen(feed.dev_rows)).inherit(
            parents
        )
        states.seed_generators(feed.run.seed, feed.rank)
        self.sums = self._zeros()
        self.watch = Stopwatch(self.engine.device)
        self.check = Check(feed.run.id, self.engine)
        self.publisher = Publisher(folder, settings.keep_best)
        self.state = restore(folder, found, feed.world, self._load, tell)
        self.passed_over = found.folders(settings.keep_best)

    def fit(self, report: Report) -> None:
        """All epochs that are left."""
        at, batches = self.state.at, self._batches
        if (at.epoch, at.cursor) != (self._begun.epoch, self._begun.cursor):  # a damaged state was passed over
            batches = self._batches = self.feed.batches(at.epoch, at.cursor)
        try:
            while not self._ended():
                epoch, skipped = self.state.at.epoch, self.state.at.cursor
                started = time.perf_counter()
                means = self._train_epoch(epoch, batches)
                trained = time.perf_counter()
                dev = self._evaluate(batches)
                seconds = trained - started, time.perf_counter() - trained
                line = self._line(epoch, skipped, means, dev, *seconds)
                self._keep(Position(epoch + 1), line)
                report(line)
        finally:
            self.publisher.wait()

    def _ended(self) -> bool:
        """Whether all epochs are trained, or dev has got no better for long enough."""
        optim = self.run.recipe.optim
        waited = optim.patience is not None and self.state.stale >= optim.patience
        return self.state.at.epoch >= optim.epochs or (waited and not self.state.at.cursor)

    def _train_epoch(self, epoch: int, batches: Batches) -> Tensor:
        """What is left of a pass over the training rows; returns the means of its `PARTS` over all ranks."""
        counts = self.feed.epoch(epoch).step_counts(self.engine.accumulation)
        every = self.feed.config.train.checkpoint_steps or len(counts)
        accumulation, saved, watch = self.engine.accumulation, False, self.watch
        watch.start()
        for index in range(self.state.at.cursor, len(counts) * accumulation):
            step, ends_step = index // accumulation, (index + 1) % accumulation == 0
            arrived, batch = next(batches)
            if (arrived.split, arrived.epoch) != ("train", epoch):
                raise DataError(f"expected a batch of epoch {epoch}, found {arrived.split} of epoch {arrived.epoch}")
            batch = batch.to(self.engine.device, self.engine.dtype)
            watch.lap("data")
            parts = losses(self.engine.forward, batch, self.objective)
            self.check.look(parts.loss, len(arrived.rows), epoch, partial(self.feed.names, arrived.rows))
            watch.lap("forward")
            self.engine.backward(parts.loss, counts[step])
            watch.lap("backward")
            self.engine.step()
            self.sums += parts.detached()
            watch.lap("optimizer")
            if not ends_step or step + 1 == len(counts):
                continue
            if not saved and (step + 1) % _ASK_STEPS == 0 and self.leaving():
                self._keep(Position(epoch, index + 1))
                self.publisher.wait()
                saved = True
            elif (step + 1) % every == 0:
                self._keep(Position(epoch, index + 1))
            watch.start()
        dist.all_reduce(self.sums)
        means, self.sums = (self.sums / sum(counts)).cpu(), self._zeros()
        return means

    def _zeros(self) -> Tensor:
        return torch.zeros(len(PARTS), dtype=torch.float64, device=self.engine.device)

    def _evaluate(self, batches: Batches) -> dict[str, Any]:
        """Scores on dev, every row counted once."""
        rows, logits = [], []
        own, most = self.feed.dev_batches
        with self.engine.evaluating():
            for _ in range(own):
                arrived, batch = next(batches)
                batch = batch.to(self.engine.device, self.engine.dtype)
                rows.append(arrived.rows)
                outputs = self.engine.forward(batch.inputs, batch.lengths_B, batch.languages_B)
                logits.append(outputs.logits_BC.float().cpu().numpy())
            for _ in range(most - own):  # ZeRO-3 gathers weights from all ranks in every forward
                batch = self.feed.silence.to(self.engine.device, self.engine.dtype)
                self.engine.forward(batch.inputs, batch.lengths_B, batch.languages_B)
        gathered: list[Any] = [None] * self.feed.world
        dist.all_gather_object(gathered, (rows, logits))
        rows_N = np.concatenate([part for of_rank in gathered for part in of_rank[0]])
        logits_NC = np.concatenate([part for of_rank in gathered for part in of_rank[1]])
        if len(rows_N) != len(self.feed.dev_rows) or len(np.unique(rows_N)) != len(rows_N):
            raise DataError(f"dev has {len(self.feed.dev_rows)} utterances, but {len(rows_N)} were evaluated")
        return dev_scores(self.feed, rows_N, logits_NC)

    def _line(
        self, epoch: int, skipped: int, means: Tensor, dev: dict[str, Any], seconds: float, dev_seconds: float
    ) -> dict[str, Any]:
        """An epoch's entry in the metrics file; speed is that of the part that was trained in one go."""
        peak = peak_flops(self.engine.device, self.engine.dtype)
        padded, audio = self.feed.seconds(skip(self.feed.epoch(epoch), skipped))
        left = self.run.recipe.optim.epochs - epoch - 1
        parts = {name: mean for name, mean in zip(PARTS, means.tolist(), strict=True) if name in self.objective.parts}
        return {
            "run": self.run.id,
            "epoch": epoch + 1,
            "epochs": self.run.recipe.optim.epochs,
            **parts,
            "lr": self.engine.learning_rate,
            "grad_norm": self.engine.gradient_norm,
            **dev,
            "steps": len(self.feed.epoch(epoch).step_counts(1)) // self.engine.accumulation,
            "seconds": seconds,
            **{f"seconds_{part}": spent for part, spent in self.watch.read().items()},
            "dev_seconds": dev_seconds,
            "audio_seconds": audio,
            "audio_seconds_per_second": audio / seconds,
            "padding": 1 - audio / padded,
            "tflops": self.flops * padded / seconds / 1e12,
            **({} if peak is None else {"mfu": self.flops * padded / seconds / (peak * self.feed.world)}),
            "memory_mb": peak_memory_mb(self.engine.device),
            "seconds_left": left * (seconds + dev_seconds),
        }

    def _keep(self, position: Position, line: dict[str, Any] | None = None) -> None:
        """Save the state at a position and, where it ends an epoch that is among the best, a checkpoint."""
        settings, old = self.feed.config.train, self.state
        name = f"resume-{position.epoch:04d}" + (f"-{position.cursor:05d}" if position.cursor else "")
        position = Position(position.epoch, position.cursor, name, self.feed.world)
        self.state = old.after(position, line, keep=settings.keep_states)
        there, self.passed_over = old.folders(settings.keep_best) | self.passed_over, set()
        with self.publisher.publishing(self.state, there) as (resume, checkpoint):
            if line is not None and states.checkpoint_name(position.epoch) in self.state.ranked(settings.keep_best):
                self._write_checkpoint(checkpoint, line)
            self.engine.save(resume)
            states.save_generators(resume / f"generators-{self.feed.rank}.pt", self.sums.cpu())

    def _write_checkpoint(self, folder: Path, line: dict[str, Any]) -> None:
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
        write(folder, network, card, state=weights)

    def _load(self, source: Path, state: State) -> None:
        """Go on from a saved state; another number of ranks has other batches, and other random numbers."""
        same = state.at.world == self.feed.world
        self.engine.load(source, world=state.at.world)
        if not same:
            self.engine.at(state.at.epoch * self.feed.steps_per_epoch)
            return
        sums = states.load_generators(source / f"generators-{self.feed.rank}.pt")
        if sums is not None:
            self.sums = sums.to(self.engine.device)


def dev_scores(feed: Feed, rows_N: Any, logits_NC: Any) -> dict[str, Any]:
    """UR of each language, their mean (which chooses the epoch), pooled WR, mean cross-entropy, and the calibration."""
    labels_N = feed.manifest.labels_N[rows_N]
    languages_N = feed.manifest.languages_N[rows_N].astype(str)
    probabilities_NC = softmax(logits_NC)
    recall = {
        code: metrics.score(probabilities_NC[languages_N == code], labels_N[languages_N == code], feed.run.emotions).UR
        for code in feed.run.languages
    }
    temperature = metrics.calibration_temperature(logits_NC, labels_N)
    chosen_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    return {
        "dev_UR": float(np.mean(list(recall.values()))),
        "dev_WR": metrics.score(probabilities_NC, labels_N, feed.run.emotions).WR,
        "dev_ce": float(-np.log(np.maximum(chosen_N, 1e-12)).mean()),
        "dev_recall": recall,
        "dev_ece": metrics.calibration_error(softmax(logits_NC / temperature), labels_N),
        "calibration_temperature": temperature,
    }
