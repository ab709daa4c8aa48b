"""Train one run on this rank: train an epoch, evaluate on dev, save the state, and retain the best epochs.

Training can resume after each epoch, and within epochs every `train.checkpoint_steps` optimizer steps. It needs an
initialized torch process group, which Ray Train provides for `lakd_ray.launch`; `lakd_ray.tune` creates its own.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lakd_ray import storage
from lakd_ray.config import to_dict
from lakd_ray.data.batch_plan import skip_batches
from lakd_ray.data.provenance import Provenance
from lakd_ray.data.reader import AudioBatch
from lakd_ray.devices import device_name, select_device
from lakd_ray.errors import DataError
from lakd_ray.models import CheckpointMetadata, build_model, write_checkpoint
from lakd_ray.runs import layout, record
from lakd_ray.runs.state import ResumePoint, RunState
from lakd_ray.train import engines
from lakd_ray.train.checkpointing import (
    AsyncCheckpointer,
    load_rank_state,
    restore_latest,
    save_rank_state,
    seed_rng,
)
from lakd_ray.train.data_loader import RankDataLoader
from lakd_ray.train.dev_metrics import compute_dev_metrics
from lakd_ray.train.flops import flops_per_audio_second, peak_flops
from lakd_ray.train.monitoring import (
    LossGuard,
    Notice,
    NoticeCheck,
    StepTimer,
    finite_or_none,
    peak_memory_mb,
    release_memory,
    reset_peak_memory,
)
from lakd_ray.train.prefetch import load_batches
from lakd_ray.train.step import LOSS_NAMES, Objective, TrainBatch, compute_losses

logger = logging.getLogger(__name__)

EpochCallback = Callable[[dict[str, Any]], None]
BatchIterator = Iterator[tuple[AudioBatch, TrainBatch]]


class TrainingStopped(Exception):  # noqa: N818 -- an orderly end, not an error
    """Training has ended before its last epoch by a notice; the message is the position of the saved state."""


def _no_notice() -> Notice:
    return ""


def train_run(
    loader: RankDataLoader,
    folder: str,
    fingerprint: dict[str, Any],
    teacher_provenance: list[Provenance],
    on_epoch: EpochCallback,
    *,
    log: Callable[[str], None] = logger.info,
    read_notice: Callable[[], Notice] = _no_notice,
) -> None:
    """Train a run to its end, resuming from the newest intact state.

    Args:
        loader: this rank's data and the run.
        folder: the run's folder.
        fingerprint: see `lakd_ray.runs.state.fingerprint_inputs`; the folder must match it.
        teacher_provenance: the data that the teachers have seen.
        on_epoch: called on every rank after each epoch with that epoch's metrics.
        log: called on rank 0 with human-readable messages.
        read_notice: all ranks call it and get the same notice, on which the state is saved immediately; `stop` then
            ends the training.

    Raises:
        TrainingError: the loss is not finite or has diverged.
        StageError: the folder belongs to a different configuration.
        StorageError: a state cannot be saved.
        TrainingStopped: the notice was `stop`, and the state is saved.
    """
    if record.is_done(folder, fingerprint):
        return
    device = select_device(loader.config.train.device)
    reset_peak_memory(device)
    trainer = Trainer(loader, folder, teacher_provenance, log if loader.rank == 0 else lambda _: None, read_notice)
    if loader.rank == 0:
        record.mark_started(folder, fingerprint)
    try:
        trainer.fit(on_epoch)
    finally:
        trainer.engine.close()
    state = trainer.state
    del trainer
    release_memory(device)
    if loader.rank == 0:
        _finalize(state, folder, fingerprint, loader.config.train.keep_checkpoints)
    dist.barrier()


def _finalize(state: RunState, folder: str, fingerprint: dict[str, Any], keep_checkpoints: int) -> None:
    """Mark the run as finished, and delete the states that are no longer needed to resume it."""
    finished = RunState(
        ResumePoint(state.latest.epochs_done, world_size=state.latest.world_size), metrics=state.metrics
    )
    finished.write(folder, keep_checkpoints)
    record.mark_finished(
        folder,
        fingerprint,
        [layout.STATE_FILE, layout.METRICS_FILE, f"{finished.best_checkpoint_name}/{storage.CHECKSUMS_FILE}"],
    )
    for name in state.referenced_folders(keep_checkpoints) - finished.referenced_folders(keep_checkpoints):
        storage.delete(storage.join(folder, name))


class Trainer:
    """Hold the data, engine, state and checkpointer of a run, and train it."""

    def __init__(
        self,
        loader: RankDataLoader,
        folder: str,
        teacher_provenance: list[Provenance],
        log: Callable[[str], None],
        read_notice: Callable[[], Notice],
    ) -> None:
        self.loader, self.folder, self.run = loader, folder, loader.run
        recipe, settings = loader.run.recipe, loader.config.train
        saved = RunState.read(folder)
        self._start = saved.latest
        # Start reading data first, so that it overlaps with loading the libraries; both take seconds.
        self._audio_batches = loader.audio_batches(saved.latest.epochs_done, saved.latest.batches_done)
        has_attention = loader.run.loss is not None and loader.run.loss.weighting == "attention"
        model = build_model(
            recipe.model,
            loader.run.emotions,
            seed=loader.run.seed,
            languages=loader.config.languages,
            num_teachers=len(loader.run.teachers) if has_attention else 0,
        )
        if model.pretrained_head_note is not None and saved == RunState():
            log(f"{loader.run.id}: {model.pretrained_head_note}")
        language_aware = recipe.model.language_aware
        self.objective = Objective(
            loader.run.loss,
            loader.run.teacher_languages,
            recipe.label_loss,
            language_aware.language_id_loss_weight if language_aware else 0.0,
        )
        self.flops_per_audio_second = flops_per_audio_second(model, features_cached=loader.feature_source is not None)
        self.pruning_metadata = (
            {} if model.source_layer_indices is None else {"layers": list(model.source_layer_indices)}
        )
        self._collate = partial(loader.collate, model=model)
        steps = loader.steps_per_epoch * recipe.optim.epochs
        self.engine = engines.build_engine(model, recipe.optim, settings, total_steps=steps, log=log)
        self.provenance = Provenance(
            loader.manifest.data_exposure(loader.train_rows), loader.manifest.data_exposure(loader.dev_rows)
        ).inherit(teacher_provenance)
        seed_rng(loader.run.seed, loader.rank)
        self.loss_sums = self._zero_loss_sums()
        self.step_timer = StepTimer(self.engine.device)
        self.notices = NoticeCheck(read_notice, self.engine.device)
        self.loss_guard = LossGuard(loader.run.id, self.engine)
        self.checkpointer = AsyncCheckpointer(folder, settings.keep_checkpoints, settings.rank_wait_s)
        self.state = restore_latest(folder, saved, loader.world_size, self._load_state, log)
        self.folders_at_start = saved.referenced_folders(settings.keep_checkpoints)

    def fit(self, on_epoch: EpochCallback) -> None:
        """Train and evaluate the remaining epochs, and call `on_epoch` after each one."""
        latest, audio_batches = self.state.latest, self._audio_batches
        if (latest.epochs_done, latest.batches_done) != (
            self._start.epochs_done,
            self._start.batches_done,
        ):  # a corrupted state was skipped
            audio_batches = self.loader.audio_batches(latest.epochs_done, latest.batches_done)
        batches = load_batches(audio_batches, self._collate, self.engine.device, self.engine.dtype)
        try:
            while not self._should_stop():
                epoch, skipped = self.state.latest.epochs_done, self.state.latest.batches_done
                started = time.perf_counter()
                means = self._train_epoch(epoch, batches)
                trained = time.perf_counter()
                dev_metrics = self._evaluate(batches)
                seconds = trained - started, time.perf_counter() - trained
                epoch_metrics = self._epoch_metrics(epoch, skipped, means, dev_metrics, *seconds)
                self._save_state(ResumePoint(epoch + 1), epoch_metrics)
                on_epoch(epoch_metrics)
                if self.notices.after_epoch() == "stop" and not self._should_stop():
                    self.checkpointer.wait()
                    raise TrainingStopped(f"the end of epoch {epoch + 1}")
        finally:
            batches.close()
            self.checkpointer.wait()

    def _should_stop(self) -> bool:
        """Return whether all epochs are done, or dev has not improved for `early_stopping_patience` epochs."""
        optim = self.run.recipe.optim
        out_of_patience = (
            optim.early_stopping_patience is not None and self.state.epochs_since_best >= optim.early_stopping_patience
        )
        return self.state.latest.epochs_done >= optim.epochs or (out_of_patience and not self.state.latest.batches_done)

    def _train_epoch(self, epoch: int, batches: BatchIterator) -> Tensor:
        """Train the rest of an epoch; return the mean of each loss in `LOSS_NAMES` over all ranks."""
        utterances_per_step = self.loader.epoch_plan(epoch).utterances_per_step(self.engine.accumulation_steps)
        save_interval = self.loader.config.train.checkpoint_steps or len(utterances_per_step)
        accumulation, saved, timer = self.engine.accumulation_steps, False, self.step_timer
        timer.start()
        self.notices.start()
        for index in range(self.state.latest.batches_done, len(utterances_per_step) * accumulation):
            step, ends_step = index // accumulation, (index + 1) % accumulation == 0
            audio_batch, batch = next(batches)
            if (audio_batch.split, audio_batch.epoch) != ("train", epoch):
                raise DataError(
                    f"expected a training batch of epoch {epoch}, "
                    f"found a {audio_batch.split} batch of epoch {audio_batch.epoch}"
                )
            timer.mark("data")
            losses = compute_losses(self.engine.forward, batch, self.objective)
            self.loss_guard.check_loss(
                losses.loss, len(audio_batch.rows), epoch, partial(self.loader.utterance_ids, audio_batch.rows)
            )
            timer.mark("forward")
            self.engine.backward(losses.loss, utterances_per_step[step])
            timer.mark("backward")
            self.engine.step()
            self.loss_sums += losses.to_tensor()
            timer.mark("optimizer")
            if not ends_step or step + 1 == len(utterances_per_step):
                continue
            notice = self.notices.after_step()
            if notice == "stop" or (notice and not saved):
                self._save_state(ResumePoint(epoch, index + 1))
                self.checkpointer.wait()
                saved = True
                if notice == "stop":
                    raise TrainingStopped(f"epoch {epoch + 1}, step {step + 1}")
            elif (step + 1) % save_interval == 0:
                self._save_state(ResumePoint(epoch, index + 1))
            timer.start()
        dist.all_reduce(self.loss_sums)
        means, self.loss_sums = (self.loss_sums / sum(utterances_per_step)).cpu(), self._zero_loss_sums()
        return means

    def _zero_loss_sums(self) -> Tensor:
        return torch.zeros(len(LOSS_NAMES), dtype=torch.float64, device=self.engine.device)

    def _evaluate(self, batches: BatchIterator) -> dict[str, Any]:
        """Return the metrics on dev; every row counts once."""
        rows, logits = [], []
        own_count, max_count = self.loader.dev_batch_counts
        with self.engine.eval_mode():
            for _ in range(own_count):
                audio_batch, batch = next(batches)
                rows.append(audio_batch.rows)
                logits.append(self.engine.forward(batch.inputs, batch.lengths_B, batch.languages_B).logits_BC.float())
            for _ in range(max_count - own_count):  # with ZeRO-3 all ranks must take part in every forward pass
                batch = self.loader.dummy_batch.to(self.engine.device, self.engine.dtype)
                self.engine.forward(batch.inputs, batch.lengths_B, batch.languages_B)
        gathered: list[Any] = [None] * self.loader.world_size
        own_logits = [logits_BC.cpu().numpy() for logits_BC in logits]  # after the last batch, as each copy waits
        dist.all_gather_object(gathered, (rows, own_logits))
        rows_N = np.concatenate([part for rank_rows, _ in gathered for part in rank_rows])
        logits_NC = np.concatenate([part for _, rank_logits in gathered for part in rank_logits])
        if len(rows_N) != len(self.loader.dev_rows) or len(np.unique(rows_N)) != len(rows_N):
            raise DataError(
                f"expected each of the {len(self.loader.dev_rows)} dev utterances once, evaluated {len(rows_N)}"
            )
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
        """Return an epoch's entry in the metrics file; throughput covers only the batches since the last resume."""
        settings = self.loader.config.train
        peak = peak_flops(self.engine.device, settings.precision, tf32=settings.tf32)
        padded, audio = self.loader.audio_seconds(skip_batches(self.loader.epoch_plan(epoch), skipped_batches))
        epochs_left = self.run.recipe.optim.epochs - epoch - 1
        losses = {
            name: mean
            for name, mean in zip(LOSS_NAMES, loss_means.tolist(), strict=True)
            if name in self.objective.loss_names
        }
        return {
            "run": self.run.id,
            "epoch": epoch + 1,
            "epochs": self.run.recipe.optim.epochs,
            **losses,
            "lr": self.engine.learning_rate,
            "grad_norm": finite_or_none(self.engine.gradient_norm),
            **dev_metrics,
            "steps": len(self.loader.epoch_plan(epoch).utterances_per_step(1)) // self.engine.accumulation_steps,
            "seconds": train_seconds,
            **{f"seconds_{phase}": seconds for phase, seconds in self.step_timer.read_and_reset().items()},
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
            "device": device_name(self.engine.device),
            "memory_mb": peak_memory_mb(self.engine.device),
            "seconds_left": epochs_left * (train_seconds + dev_seconds),
        }

    def _save_state(self, resume_point: ResumePoint, epoch_metrics: dict[str, Any] | None = None) -> None:
        """Save the state at a position and, after an epoch that is among the best, a checkpoint."""
        settings, previous = self.loader.config.train, self.state
        name = layout.resume_folder_name(resume_point.epochs_done, resume_point.batches_done)
        resume_point = ResumePoint(resume_point.epochs_done, resume_point.batches_done, name, self.loader.world_size)
        self.state = previous.advance(resume_point, epoch_metrics, keep_resume_states=settings.keep_resume_states)
        existing = previous.referenced_folders(settings.keep_checkpoints) | self.folders_at_start
        self.folders_at_start = set()
        with self.checkpointer.save(self.state, existing) as (resume, checkpoint):
            if epoch_metrics is not None and layout.checkpoint_name(
                resume_point.epochs_done
            ) in self.state.best_checkpoint_names(settings.keep_checkpoints):
                self._write_model_checkpoint(checkpoint, epoch_metrics)
            self.engine.save(resume)
            save_rank_state(resume / f"generators-{self.loader.rank}.pt", self.loss_sums.cpu(), self.engine.device)

    def _write_model_checkpoint(self, folder: Path, epoch_metrics: dict[str, Any]) -> None:
        network, weights = self.engine.full_state_dict()
        if self.loader.rank != 0:
            return
        metadata = CheckpointMetadata(
            model_id=f"{self.loader.config.name}/{self.run.id}",
            emotions=self.run.emotions,
            languages=self.run.languages,
            provenance=self.provenance,
            training={"run": to_dict(self.run), "dev": epoch_metrics, **self.pruning_metadata},
        )
        write_checkpoint(folder, network, metadata, state_dict=weights)

    def _load_state(self, source: Path, state: RunState) -> None:
        """Load a saved state; with a different number of ranks, later batches and random numbers differ."""
        same_world_size = state.latest.world_size == self.loader.world_size
        self.engine.load(source, world_size=state.latest.world_size)
        if not same_world_size:
            self.engine.set_schedule_step(state.latest.epochs_done * self.loader.steps_per_epoch)
            return
        loss_sums = load_rank_state(source / f"generators-{self.loader.rank}.pt", self.engine.device)
        if loss_sums is not None:
            self.loss_sums = loss_sums.to(self.engine.device)
