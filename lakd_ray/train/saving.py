"""Saved states go to storage while training goes on, and come back whole or not at all.

Files are written to this machine's disk first, which takes moments; a thread then copies them to storage, seals the
folder, and makes `state.json` point at it. A run that is killed meanwhile goes on from the state before.
"""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from lakd_ray import storage
from lakd_ray.errors import DamagedError, StorageError
from lakd_ray.train.state import State, checkpoint_name

_RESUME, _CHECKPOINT = "resume", "checkpoint"
# Uploads of ranks differ in length; the loss of a rank breaks the connection, which ends the waiting.
_PATIENCE = timedelta(days=1)

T = TypeVar("T")


@cache
def _group() -> Any:
    """A process group for the threads, whose collectives must not mix with those of training."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


class Publisher:
    """Publishes a run's states, one after the other. All ranks must call its methods, in the same order.

    Args:
        folder: the run's folder.
        keep_best: checkpoints that are kept.
    """

    def __init__(self, folder: str, keep_best: int) -> None:
        self._folder, self._keep_best = folder, keep_best
        self._rank = dist.get_rank()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        _group()  # made where all ranks are at the same place

    @contextmanager
    def publishing(self, state: State, there: set[str]) -> Iterator[tuple[Path, Path]]:
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
        self._thread = threading.Thread(target=self._run, args=(scratch, state, there), name="publish", daemon=True)
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

    def _run(self, scratch: Path, state: State, there: set[str]) -> None:
        try:
            self._publish(scratch, state, there)
        except BaseException as error:  # noqa: BLE001 -- told by `wait`
            self._error = error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _publish(self, scratch: Path, state: State, there: set[str]) -> None:
        location = storage.join(self._folder, str(state.at.resume))
        self._on_first(lambda: self._prepare(scratch / _CHECKPOINT, location, state))
        parts = _together(lambda: storage.copy_into(scratch / _RESUME, location))
        self._on_first(lambda: self._point(location, parts, state, there))

    def _prepare(self, checkpoint: Path, location: str, state: State) -> None:
        if any(checkpoint.iterdir()):
            storage.publish_folder(checkpoint, storage.join(self._folder, checkpoint_name(state.at.epoch)))
        storage.unseal(location)

    def _point(self, location: str, parts: list[Any], state: State, there: set[str]) -> None:
        storage.seal(location, parts)
        state.write(self._folder, self._keep_best)
        for name in there - state.folders(self._keep_best):
            storage.delete(storage.join(self._folder, name))

    def _on_first(self, action: Callable[[], None]) -> None:
        _together(action if self._rank == 0 else lambda: None)


def _together(action: Callable[[], T]) -> list[T]:
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
    dist.all_gather_object(everywhere, done, group=_group())
    for rank, (_, reason) in enumerate(everywhere):
        if reason is not None:
            raise StorageError(f"rank {rank} could not save its state: {reason}")
    return [result for result, _ in everywhere]


def restore(
    folder: str, state: State, world: int, load: Callable[[Path, State], None], tell: Callable[[str], None]
) -> State:
    """Load the newest state that is whole, and that so many ranks can go on from; returns it.

    Args:
        state: as `State.read` finds it.
        load: given the state's folder, on this machine, and the state; called once, or not at all if none is whole.
        tell: given a sentence on every state that is passed over.
    """
    while state.at.resume is not None:
        if state.at.world != world and state.at.cursor:
            tell(
                f"saved by {state.at.world} workers within epoch {state.at.epoch + 1}, now there are {world}: "
                "going on from the end of an epoch"
            )
            state = state.back()
            continue
        with ExitStack() as stack:
            source, damage = None, None
            try:
                source = stack.enter_context(storage.fetched_folder(storage.join(folder, str(state.at.resume))))
            except DamagedError as error:
                damage = str(error)
            found: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(found, damage)
            told = next((each for each in found if each), None)
            if source is not None and told is None:
                if state.at.world != world:
                    tell(
                        f"going on with {world} workers instead of {state.at.world}: losses stay comparable, but are "
                        "not the same to the last bit, and a step has as many batches as there are workers"
                    )
                load(source, state)
                return state
        state = state.back()
        where = f"epoch {state.at.epoch}" + (f", batch {state.at.cursor}" if state.at.cursor else "")
        tell(f"{told} Going on from the state before it: {where if state.at.resume else 'the beginning'}")
    return state
