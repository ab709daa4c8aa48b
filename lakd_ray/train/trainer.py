"""Trains one run on this rank: epochs of planned batches, dev after each, the best epoch kept.

Resumable after each epoch, and within epochs every `train.checkpoint_steps` optimizer steps.

Needs an initialised torch process group; `lakd_ray.launch.driver` provides it by Ray Train, `lakd_ray.tune` by itself.
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

from lakd_ray import metrics, storage
from lakd_ray.config import to_dict
from lakd_ray.data.batch_plan import skip_batches
from lakd_ray.data.provenance import Provenance
from lakd_ray.data.reader import AudioBatch
from lakd_ray.errors import DataError
from lakd_ray.inference.predictor import softmax
from lakd_ray.models import CheckpointMetadata, build_model, write_checkpoint
from lakd_ray.runs import layout, record
from lakd_ray.runs.state import ResumePoint, RunState
from lakd_ray.train import engines
from lakd_ray.train.checkpointing import (
    AsyncCheckpointer,
    load_rng_state,
    restore_latest,
    save_rng_state,
    seed_rng,
)
from lakd_ray.train.data_loader import RankDataLoader
from lakd_ray.train.flops import flops_per_audio_second, peak_flops
from lakd_ray.train.monitoring import LossGuard, StepTimer, peak_memory_mb
from lakd_ray.train.step import LOSS_NAMES, Objective, TrainBatch, compute_losses

EpochCallback = Callable[[dict[str, Any]], None]
BatchIterator = Iterator[tuple[AudioBatch, TrainBatch]]
# Asking is a barrier over all ranks, and spot machines are taken away with tens of seconds of notice.
_PREEMPTION_CHECK_STEPS = 10


def _no_preemption() -> bool:
    return False


def train_run(
    loader: RankDataLoader,
    folder: str,
    fingerprint: dict[str, Any],
    teacher_provenance: list[Provenance],
    report: EpochCallback,
    *,
    log: Callable[[str], None] = print,
    preemption_pending: Callable[[], bool] = _no_preemption,
) -> None:
    """Train a run to its end, from where an earlier attempt stopped.

    Args:
        feed: this rank's data; names the run.
        folder: the run's folder.
        fingerprint: see `lakd_ray.runs.state.fingerprint`; identifies the run's folder as this run's.
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
    if record.is_done(folder, fingerprint):
        return
    trainer = Trainer(
        loader, folder, teacher_provenance, log if loader.rank == 0 else lambda _: None, preemption_pending
    )
    if loader.rank == 0:
        record.mark_started(folder, fingerprint)
    try:
        trainer.fit(report)
    finally:
        trainer.engine.close()
    if loader.rank == 0:
        _finalize(trainer.state, folder, fingerprint, loader.config.train.keep_checkpoints)
    dist.barrier()


def _finalize(state: RunState, folder: str, fingerprint: dict[str, Any], keep_checkpoints: int) -> None:
    """Nothing is to be resumed any more."""
    ended = RunState(ResumePoint(state.latest.epoch, world_size=state.latest.world_size), metrics=state.metrics)
    ended.write(folder, keep_checkpoints)
    record.mark_finished(
        folder,
        fingerprint,
        [layout.STATE_FILE, layout.METRICS_FILE, f"{ended.best_checkpoint_name}/{storage.CHECKSUMS_FILE}"],
    )
    for name in state.referenced_folders(keep_checkpoints) - ended.referenced_folders(keep_checkpoints):
        storage.delete(storage.join(folder, name))


class Trainer:
    """The state of one run in training."""

    def __init__(
        self,
        loader: RankDataLoader,
        folder: str,
        teacher_provenance: list[Provenance],
        log: Callable[[str], None],
        preemption_pending: Callable[[], bool],
    ) -> None:
        self.loader, self.folder, self.run, self.preemption_pending = loader, folder, loader.run, preemption_pending
        recipe, settings = loader.run.recipe, loader.config.train
        found = RunState.read(folder)
        self._start = found.latest
        # reading takes seconds to begin, as do the model's and the engine's libraries to load
        self._batches = loader.batches(found.latest.epoch, found.latest.cursor)
        attended = loader.run.loss is not None and loader.run.loss.weighting == "attention"
        model = build_model(
            recipe.model,
            loader.run.emotions,
            seed=loader.run.seed,
            languages=loader.config.languages,
            num_teachers=len(loader.run.teachers) if attended else 0,
        )
        aware = recipe.model.language_aware
        self.objective = Objective(
            loader.run.loss,
            loader.run.teacher_languages,
            recipe.label_loss,
            aware.language_id_loss_weight if aware else 0.0,
        )
        self.flops_per_audio_second = flops_per_audio_second(model, features_cached=loader.feature_source is not None)
        self.kept_layers_metadata = (
            {} if model.source_layer_indices is None else {"layers": list(model.source_layer_indices)}
        )
        steps = loader.steps_per_epoch * recipe.optim.epochs
        self.engine = engines.build_engine(model, recipe.optim, settings, total_steps=steps)
        self.provenance = Provenance(
            loader.manifest.data_exposure(loader.train_rows), loader.manifest.data_exposure(loader.dev_rows)
        ).inherit(teacher_provenance)
        seed_rng(loader.run.seed, loader.rank)
        self.loss_sums = self._zero_loss_sums()
        self.step_timer = StepTimer(self.engine.device)
        self.loss_guard = LossGuard(loader.run.id, self.engine)
        self.checkpointer = AsyncCheckpointer(folder, settings.keep_checkpoints)
        self.state = restore_latest(folder, found, loader.world_size, self._load_state, log)
        self.stale_folders = found.referenced_folders(settings.keep_checkpoints)

    def fit(self, report: EpochCallback) -> None:
        """All epochs that are left."""
        at, batches = self.state.latest, self._batches
        if (at.epoch, at.cursor) != (self._start.epoch, self._start.cursor):  # a damaged state was passed over
            batches = self._batches = self.loader.batches(at.epoch, at.cursor)
        try:
            while not self._should_stop():
                epoch, skipped = self.state.latest.epoch, self.state.latest.cursor
                started = time.perf_counter()
                means = self._train_epoch(epoch, batches)
                trained = time.perf_counter()
                dev = self._evaluate(batches)
                seconds = trained - started, time.perf_counter() - trained
                line = self._epoch_metrics(epoch, skipped, means, dev, *seconds)
                self._save_state(ResumePoint(epoch + 1), line)
                report(line)
        finally:
            self.checkpointer.wait()

    def _should_stop(self) -> bool:
        """Whether all epochs are trained, or dev has got no better for long enough."""
        optim = self.run.recipe.optim
        waited = (
            optim.early_stopping_patience is not None and self.state.epochs_since_best >= optim.early_stopping_patience
        )
        return self.state.latest.epoch >= optim.epochs or (waited and not self.state.latest.cursor)

    def _train_epoch(self, epoch: int, batches: BatchIterator) -> Tensor:
        """What is left of a pass over the training rows; returns the means of its `LOSS_NAMES` over all ranks."""
        counts = self.loader.epoch_plan(epoch).utterances_per_step(self.engine.accumulation_steps)
        every = self.loader.config.train.checkpoint_steps or len(counts)
        accumulation, saved, watch = self.engine.accumulation_steps, False, self.step_timer
        watch.start()
        for index in range(self.state.latest.cursor, len(counts) * accumulation):
            step, ends_step = index // accumulation, (index + 1) % accumulation == 0
            arrived, batch = next(batches)
            if (arrived.split, arrived.epoch) != ("train", epoch):
                raise DataError(f"expected a batch of epoch {epoch}, found {arrived.split} of epoch {arrived.epoch}")
            batch = batch.to(self.engine.device, self.engine.dtype)
            watch.mark("data")
            parts = compute_losses(self.engine.forward, batch, self.objective)
            self.loss_guard.check_loss(
                parts.loss, len(arrived.rows), epoch, partial(self.loader.utterance_ids, arrived.rows)
            )
            watch.mark("forward")
            self.engine.backward(parts.loss, counts[step])
            watch.mark("backward")
            self.engine.step()
            self.loss_sums += parts.to_tensor()
            watch.mark("optimizer")
            if not ends_step or step + 1 == len(counts):
                continue
            if not saved and (step + 1) % _PREEMPTION_CHECK_STEPS == 0 and self.preemption_pending():
                self._save_state(ResumePoint(epoch, index + 1))
                self.checkpointer.wait()
                saved = True
            elif (step + 1) % every == 0:
                self._save_state(ResumePoint(epoch, index + 1))
            watch.start()
        dist.all_reduce(self.loss_sums)
        means, self.loss_sums = (self.loss_sums / sum(counts)).cpu(), self._zero_loss_sums()
        return means

    def _zero_loss_sums(self) -> Tensor:
        return torch.zeros(len(LOSS_NAMES), dtype=torch.float64, device=self.engine.device)

    def _evaluate(self, batches: BatchIterator) -> dict[str, Any]:
        """Scores on dev, every row counted once."""
        rows, logits = [], []
        own, most = self.loader.dev_batch_counts
        with self.engine.eval_mode():
            for _ in range(own):
                arrived, batch = next(batches)
                batch = batch.to(self.engine.device, self.engine.dtype)
                rows.append(arrived.rows)
                outputs = self.engine.forward(batch.inputs, batch.lengths_B, batch.languages_B)
                logits.append(outputs.logits_BC.float().cpu().numpy())
            for _ in range(most - own):  # ZeRO-3 gathers weights from all ranks in every forward
                batch = self.loader.dummy_batch.to(self.engine.device, self.engine.dtype)
                self.engine.forward(batch.inputs, batch.lengths_B, batch.languages_B)
        gathered: list[Any] = [None] * self.loader.world_size
        dist.all_gather_object(gathered, (rows, logits))
        rows_N = np.concatenate([part for of_rank in gathered for part in of_rank[0]])
        logits_NC = np.concatenate([part for of_rank in gathered for part in of_rank[1]])
        if len(rows_N) != len(self.loader.dev_rows) or len(np.unique(rows_N)) != len(rows_N):
            raise DataError(f"dev has {len(self.loader.dev_rows)} utterances, but {len(rows_N)} were evaluated")
        return compute_dev_metrics(self.loader, rows_N, logits_NC)

    def _epoch_metrics(
        self,
        epoch: int,
        skipped_batches: int,
        loss_means: Tensor,
        dev_metrics: dict[str, Any],
        train_seconds: float,
        dev_seconds: float,
    ) -> dict[str, Any]:
        """An epoch's entry in the metrics file; speed is that of the part that was trained in one go."""
        peak = peak_flops(self.engine.device, self.engine.dtype)
        padded, audio = self.loader.audio_seconds(skip_batches(self.loader.epoch_plan(epoch), skipped_batches))
        left = self.run.recipe.optim.epochs - epoch - 1
        parts = {
            name: mean
            for name, mean in zip(LOSS_NAMES, loss_means.tolist(), strict=True)
            if name in self.objective.loss_names
        }
        return {
            "run": self.run.id,
            "epoch": epoch + 1,
            "epochs": self.run.recipe.optim.epochs,
            **parts,
            "lr": self.engine.learning_rate,
            "grad_norm": self.engine.gradient_norm,
            **dev_metrics,
            "steps": len(self.loader.epoch_plan(epoch).utterances_per_step(1)) // self.engine.accumulation_steps,
            "seconds": train_seconds,
            **{f"seconds_{part}": spent for part, spent in self.step_timer.read_and_reset().items()},
            "dev_seconds": dev_seconds,
            "audio_seconds": audio,
            "audio_seconds_per_second": audio / train_seconds,
            "padding": 1 - audio / padded,
            "tflops": self.flops_per_audio_second * padded / train_seconds / 1e12,
            **(
                {}
                if peak is None
                else {"mfu": self.flops_per_audio_second * padded / train_seconds / (peak * self.loader.world_size)}
            ),
            "memory_mb": peak_memory_mb(self.engine.device),
            "seconds_left": left * (train_seconds + dev_seconds),
        }

    def _save_state(self, resume_point: ResumePoint, epoch_metrics: dict[str, Any] | None = None) -> None:
        """Save the state at a position and, where it ends an epoch that is among the best, a checkpoint."""
        settings, old = self.loader.config.train, self.state
        name = layout.resume_folder_name(resume_point.epoch, resume_point.cursor)
        resume_point = ResumePoint(resume_point.epoch, resume_point.cursor, name, self.loader.world_size)
        self.state = old.advance(resume_point, epoch_metrics, keep_resume_states=settings.keep_resume_states)
        there, self.stale_folders = old.referenced_folders(settings.keep_checkpoints) | self.stale_folders, set()
        with self.checkpointer.save(self.state, there) as (resume, checkpoint):
            if epoch_metrics is not None and layout.checkpoint_name(resume_point.epoch) in self.state.best_checkpoints(
                settings.keep_checkpoints
            ):
                self._write_model_checkpoint(checkpoint, epoch_metrics)
            self.engine.save(resume)
            save_rng_state(resume / f"generators-{self.loader.rank}.pt", self.loss_sums.cpu())

    def _write_model_checkpoint(self, folder: Path, epoch_metrics: dict[str, Any]) -> None:
        network, weights = self.engine.full_state_dict()
        if self.loader.rank != 0:
            return
        card = CheckpointMetadata(
            model_id=f"{self.loader.config.name}/{self.run.id}",
            emotions=self.run.emotions,
            languages=self.run.languages,
            provenance=self.provenance,
            training={"run": to_dict(self.run), "dev": epoch_metrics, **self.kept_layers_metadata},
        )
        write_checkpoint(folder, network, card, state_dict=weights)

    def _load_state(self, source: Path, state: RunState) -> None:
        """Go on from a saved state; another number of ranks has other batches, and other random numbers."""
        same = state.latest.world_size == self.loader.world_size
        self.engine.load(source, world_size=state.latest.world_size)
        if not same:
            self.engine.set_schedule_step(state.latest.epoch * self.loader.steps_per_epoch)
            return
        sums = load_rng_state(source / f"generators-{self.loader.rank}.pt")
        if sums is not None:
            self.loss_sums = sums.to(self.engine.device)


def compute_dev_metrics(loader: RankDataLoader, rows_N: Any, logits_NC: Any) -> dict[str, Any]:
    """UR of each language, their mean (which chooses the epoch), pooled WR, mean cross-entropy, and the calibration."""
    labels_N = loader.manifest.labels_N[rows_N]
    languages_N = loader.manifest.languages_N[rows_N].astype(str)
    probabilities_NC = softmax(logits_NC)
    recall = {
        code: metrics.compute_scores(
            probabilities_NC[languages_N == code], labels_N[languages_N == code], loader.run.emotions
        ).UR
        for code in loader.run.languages
    }
    temperature = metrics.fit_temperature(logits_NC, labels_N)
    chosen_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    return {
        "dev_UR": float(np.mean(list(recall.values()))),
        "dev_WR": metrics.compute_scores(probabilities_NC, labels_N, loader.run.emotions).WR,
        "dev_ce": float(-np.log(np.maximum(chosen_N, 1e-12)).mean()),
        "dev_recall": recall,
        "dev_ece": metrics.expected_calibration_error(softmax(logits_NC / temperature), labels_N),
        "calibration_temperature": temperature,
    }
