"""Save training states in the background, and restore the newest intact one.

Files are first written to the local disk, which is fast; a thread then uploads them, writes the folder's checksums, and
makes `state.json` point to the folder. A run that is killed during the upload resumes from the previous state.
"""

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lakd_ray import storage
from lakd_ray.errors import CorruptedError, DiskFullError, LeaseError, StorageError
from lakd_ray.runs.layout import checkpoint_name
from lakd_ray.runs.state import RunState
from lakd_ray.scratch import make_scratch_folder, remove_scratch_folder

logger = logging.getLogger(__name__)

_RESUME, _CHECKPOINT = "resume", "checkpoint"
_CPU = torch.device("cpu")

T = TypeVar("T")


@cache
def _process_group(timeout_s: float) -> Any:
    """A process group for the upload threads, because their collectives must not mix with those of training.

    If a rank dies, its connection breaks, which ends a wait before its timeout.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))


class AsyncCheckpointer:
    """Save a run's states one after the other. All ranks must call the methods in the same order.

    Args:
        folder: the run's folder.
        keep_checkpoints: number of best checkpoints to retain.
        rank_wait_s: longest wait for a rank that uploads for longer than the others, in seconds.
    """

    def __init__(self, folder: str, keep_checkpoints: int, rank_wait_s: float) -> None:
        self._folder, self._keep_checkpoints = folder, keep_checkpoints
        self._rank = dist.get_rank()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        # Creating a group is a collective operation, so do it here, where all ranks are synchronized.
        self._group = _process_group(rank_wait_s)

    @contextmanager
    def save(self, state: RunState, existing_folders: set[str]) -> Iterator[tuple[Path, Path]]:
        """Yield two empty local folders (resume state, checkpoint), and upload their content after the `with` block.

        The upload runs in the background. A checkpoint folder that rank 0 leaves empty is not uploaded.

        Args:
            state: the state to write to `state.json` after the upload.
            existing_folders: names of folders in storage; those that the state does not reference are deleted after
                the upload.

        Raises:
            StorageError: the previous state could not be uploaded.
            DiskFullError: the temporary folder has no room for this one.
        """
        self.wait()
        scratch = make_scratch_folder()
        try:
            with storage.explain_full_disk("save a training state in", scratch):
                resume, checkpoint = scratch / _RESUME, scratch / _CHECKPOINT
                resume.mkdir()
                checkpoint.mkdir()
                yield resume, checkpoint
        except BaseException:
            remove_scratch_folder(scratch)
            raise
        self._thread = threading.Thread(
            target=self._upload_in_background, args=(scratch, state, existing_folders), name="publish", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Block until the upload in progress is complete.

        Raises:
            StorageError: the upload failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _upload_in_background(self, scratch: Path, state: RunState, existing_folders: set[str]) -> None:
        try:
            self._upload(scratch, state, existing_folders)
        except BaseException as error:  # noqa: BLE001 -- raised by `wait`
            self._error = error
        finally:
            remove_scratch_folder(scratch)

    def _upload(self, scratch: Path, state: RunState, existing_folders: set[str]) -> None:
        location = storage.join(self._folder, str(state.latest.resume_folder))
        self._on_rank0(lambda: self._upload_checkpoint(scratch / _CHECKPOINT, location, state))
        checksums = self._gather(lambda: storage.upload_folder(scratch / _RESUME, location))
        self._on_rank0(lambda: self._commit(location, checksums, state, existing_folders))

    def _upload_checkpoint(self, checkpoint: Path, location: str, state: RunState) -> None:
        if any(checkpoint.iterdir()):
            storage.write_checksummed_folder(
                checkpoint, storage.join(self._folder, checkpoint_name(state.latest.epochs_done))
            )
        storage.empty_folder(location)

    def _commit(self, location: str, rank_checksums: list[Any], state: RunState, existing_folders: set[str]) -> None:
        storage.write_checksums(location, rank_checksums)
        state.write(self._folder, self._keep_checkpoints)
        for name in existing_folders - state.referenced_folders(self._keep_checkpoints):
            storage.delete(storage.join(self._folder, name))

    def _on_rank0(self, action: Callable[[], None]) -> None:
        self._gather(action if self._rank == 0 else lambda: None)

    def _gather(self, action: Callable[[], T]) -> list[T]:
        return _gather_results(action, self._group)


def _gather_results(action: Callable[[], T], group: Any) -> list[T]:
    """Run the action on every rank and return the results of all ranks.

    Raises:
        StorageError: the action failed on a rank; DiskFullError if its disk is full.
        LeaseError: it failed on this rank because a different process has taken over the experiment.
    """
    outcome: tuple[T | None, str | None, bool]
    lost: LeaseError | None = None
    try:
        outcome = action(), None, False
    except (StorageError, OSError) as error:
        full = storage.find_full_disk(error)
        outcome = None, str(full or error), full is not None
    except LeaseError as error:
        lost, outcome = error, (None, str(error), False)
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome, group=group)
    if lost is not None:
        raise lost
    for rank, (_, error_text, is_full) in enumerate(outcomes):
        if error_text is not None:
            error_type = DiskFullError if is_full else StorageError
            raise error_type(f"rank {rank} could not save its state: {error_text}")
    return [result for result, _, _ in outcomes]


def restore_latest(
    folder: str, state: RunState, world_size: int, load: Callable[[Path, RunState], None], log: Callable[[str], None]
) -> RunState:
    """Load the newest intact state that the current number of ranks can resume from; return it.

    Args:
        folder: the run's folder.
        state: the result of `RunState.read`.
        world_size: current number of ranks.
        load: called with a local copy of the resume folder and the state; not called if no state is intact.
        log: called with a sentence for every state that is skipped.
    """
    while state.latest.resume_folder is not None:
        if state.latest.world_size != world_size and state.latest.batches_done:
            log(
                f"the mid-epoch state of epoch {state.latest.epochs_done + 1} was saved by {state.latest.world_size} "
                f"workers and cannot be resumed with {world_size}: falling back to the end of an earlier epoch"
            )
            state = state.rollback()
            continue
        with ExitStack() as stack:
            source, corruption = None, None
            try:
                source = stack.enter_context(
                    storage.open_checksummed_folder(storage.join(folder, str(state.latest.resume_folder)))
                )
            except CorruptedError as error:
                corruption = str(error)
            corruptions: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(corruptions, corruption)
            first_corruption = next((text for text in corruptions if text), None)
            if source is not None and first_corruption is None:
                if state.latest.world_size != world_size:
                    log(
                        f"resuming with {world_size} workers instead of {state.latest.world_size}: a step has one "
                        "batch per worker, so losses stay comparable but are not bit-identical"
                    )
                load(source, state)
                return state
        damaged, state = state.latest.resume_folder, state.rollback()
        logger.debug(first_corruption)
        position = f"epoch {state.latest.epochs_done}" + (
            f", batch {state.latest.batches_done}" if state.latest.batches_done else ""
        )
        start = position if state.latest.resume_folder else "the beginning"
        log(f"the saved state {damaged} is incomplete or damaged; resuming from the previous state: {start}")
    return state


def save_rank_state(file: Path, loss_sums: Tensor | None = None, device: torch.device = _CPU) -> None:
    """Write the state of the random generators that training draws from; the masks of SpecAugment have own seeds.

    Args:
        file: the file to write.
        device: device of the training; a GPU has its own generator.
        loss_sums: this rank's loss sums of the epoch in progress, stored in the same file.
    """
    state = {
        "sums": loss_sums,
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    torch.save(state, file)


def load_rank_state(file: Path, device: torch.device = _CPU) -> Tensor | None:
    """Restore the random state that `save_rank_state` wrote, perhaps on a different device; return its loss sums."""
    state = torch.load(file, weights_only=True)
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    loss_sums: Tensor | None = state["sums"]
    return loss_sums


def seed_rng(seed: int, rank: int) -> None:
    """Seed every random generator from the run's seed and the rank, so that dropout differs between ranks."""
    random.seed(seed * 1000 + rank)
    np.random.seed((seed * 1000 + rank) % 2**32)
    torch.manual_seed(seed * 1000 + rank)
