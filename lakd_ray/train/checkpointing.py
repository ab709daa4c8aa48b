"""Saved states go to storage while training goes on, and come back whole or not at all.

Files are written to this machine's disk first, which takes moments; a thread then copies them to storage, seals the
folder, and makes `state.json` point at it. A run that is killed meanwhile goes on from the state before.
"""

import random
import shutil
import tempfile
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
from lakd_ray.errors import CorruptedError, StorageError
from lakd_ray.runs.layout import checkpoint_name
from lakd_ray.runs.state import RunState

_RESUME, _CHECKPOINT = "resume", "checkpoint"
# Uploads of ranks differ in length; the loss of a rank breaks the connection, which ends the waiting.
_TIMEOUT = timedelta(days=1)

T = TypeVar("T")


@cache
def _process_group() -> Any:
    """A process group for the threads, whose collectives must not mix with those of training."""
    return dist.new_group(backend="gloo", timeout=_TIMEOUT)


class AsyncCheckpointer:
    """Publishes a run's states, one after the other. All ranks must call its methods, in the same order.

    Args:
        folder: the run's folder.
        keep_checkpoints: checkpoints that are kept.
    """

    def __init__(self, folder: str, keep_checkpoints: int) -> None:
        self._folder, self._keep_best = folder, keep_checkpoints
        self._rank = dist.get_rank()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        _process_group()  # made where all ranks are at the same place

    @contextmanager
    def save(self, state: RunState, existing_folders: set[str]) -> Iterator[tuple[Path, Path]]:
        """Publish a state after the block, which is given empty folders to fill: (its resume folder, a checkpoint).

        Those of the folders that are there and that the state does not need are deleted when it is published. A
        checkpoint that the first rank leaves empty is none.

        Raises:
            StorageError: the state before could not be published.
        """
        self.wait()
        scratch = Path(tempfile.mkdtemp(prefix="lakd-"))
        try:
            resume, checkpoint = scratch / _RESUME, scratch / _CHECKPOINT
            resume.mkdir()
            checkpoint.mkdir()
            yield resume, checkpoint
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        self._thread = threading.Thread(
            target=self._upload_in_background, args=(scratch, state, existing_folders), name="publish", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until all is published.

        Raises:
            StorageError: it could not be.
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
        except BaseException as error:  # noqa: BLE001 -- told by `wait`
            self._error = error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _upload(self, scratch: Path, state: RunState, existing_folders: set[str]) -> None:
        location = storage.join(self._folder, str(state.latest.resume_folder))
        self._on_rank0(lambda: self._upload_checkpoint(scratch / _CHECKPOINT, location, state))
        parts = _gather_results(lambda: storage.upload_folder(scratch / _RESUME, location))
        self._on_rank0(lambda: self._commit(location, parts, state, existing_folders))

    def _upload_checkpoint(self, checkpoint: Path, location: str, state: RunState) -> None:
        if any(checkpoint.iterdir()):
            storage.write_checksummed_folder(
                checkpoint, storage.join(self._folder, checkpoint_name(state.latest.epoch))
            )
        storage.remove_checksums(location)

    def _commit(self, location: str, rank_checksums: list[Any], state: RunState, existing_folders: set[str]) -> None:
        storage.write_checksums(location, rank_checksums)
        state.write(self._folder, self._keep_best)
        for name in existing_folders - state.referenced_folders(self._keep_best):
            storage.delete(storage.join(self._folder, name))

    def _on_rank0(self, action: Callable[[], None]) -> None:
        _gather_results(action if self._rank == 0 else lambda: None)


def _gather_results(action: Callable[[], T]) -> list[T]:
    """What every rank's action returned.

    Raises:
        StorageError: one of them failed.
    """
    done: tuple[T | None, str | None]
    try:
        done = action(), None
    except (StorageError, OSError) as error:
        done = None, str(error)
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, done, group=_process_group())
    for rank, (_, reason) in enumerate(everywhere):
        if reason is not None:
            raise StorageError(f"rank {rank} could not save its state: {reason}")
    return [result for result, _ in everywhere]


def restore_latest(
    folder: str, state: RunState, world_size: int, load: Callable[[Path, RunState], None], log: Callable[[str], None]
) -> RunState:
    """Load the newest state that is whole, and that so many ranks can go on from; returns it.

    Args:
        state: as `State.read` finds it.
        load: given the state's folder, on this machine, and the state; called once, or not at all if none is whole.
        tell: given a sentence on every state that is passed over.
    """
    while state.latest.resume_folder is not None:
        if state.latest.world_size != world_size and state.latest.cursor:
            log(
                f"saved by {state.latest.world_size} workers within epoch {state.latest.epoch + 1}, now there are {world_size}: "
                "going on from the end of an epoch"
            )
            state = state.rollback()
            continue
        with ExitStack() as stack:
            source, damage = None, None
            try:
                source = stack.enter_context(
                    storage.open_checksummed_folder(storage.join(folder, str(state.latest.resume_folder)))
                )
            except CorruptedError as error:
                damage = str(error)
            found: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(found, damage)
            told = next((each for each in found if each), None)
            if source is not None and told is None:
                if state.latest.world_size != world_size:
                    log(
                        f"going on with {world_size} workers instead of {state.latest.world_size}: losses stay comparable, but are "
                        "not the same to the last bit, and a step has as many batches as there are workers"
                    )
                load(source, state)
                return state
        state = state.rollback()
        where = f"epoch {state.latest.epoch}" + (f", batch {state.latest.cursor}" if state.latest.cursor else "")
        log(f"{told} Going on from the state before it: {where if state.latest.resume_folder else 'the beginning'}")
    return state


def save_rng_state(file: Path, loss_sums: Tensor | None = None) -> None:
    """Write the state of every random generator that training uses (SpecAugment uses NumPy's).

    Args:
        file: the file to write.
        loss_sums: this rank's loss sums of the epoch in progress, stored in the same file.
    """
    state = {
        "sums": loss_sums,
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, file)


def load_rng_state(file: Path) -> Tensor | None:
    """Restore the random state that `save_rng_state` wrote and return its loss sums."""
    state = torch.load(file, weights_only=False)
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    loss_sums: Tensor | None = state["sums"]
    return loss_sums


def seed_rng(seed: int, rank: int) -> None:
    """Seed every random generator from the run's seed and the rank, so that dropout differs between ranks."""
    random.seed(seed * 1000 + rank)
    np.random.seed((seed * 1000 + rank) % 2**32)
    torch.manual_seed(seed * 1000 + rank)
