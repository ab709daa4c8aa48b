"""Let at most one process at a time work on a folder, on a disk that machines share or in a bucket.

    <folder>/lease/000007.json   the holder with the fencing token 7: host, process, user, command, heartbeat
    <folder>/lease/000007/       files that the holder is writing, on a disk

A process takes a lease by creating the file of the next token, which succeeds for only one of several processes. It
then rewrites the file every few seconds with a higher heartbeat. A lease ends when its holder releases it or is dead:
on the same machine, if there is no such process; from a different machine, if the heartbeat has not changed while this
process watched it for `EXPIRY_S`. Clocks of different machines are never compared. `lakd_ray.storage.fences` keeps a
holder from writing after it has lost its lease. Readers need no lease.
"""

import errno
import getpass
import json
import logging
import os
import shlex
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lakd_ray import signals
from lakd_ray.errors import LeaseError, StorageError
from lakd_ray.processes import ProcessId
from lakd_ray.storage import conditional, fences
from lakd_ray.storage.errors import translate_errors
from lakd_ray.storage.fences import Fence
from lakd_ray.storage.files import delete, read_bytes, write_bytes
from lakd_ray.storage.filesystems import is_remote, short_timeouts

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
"""Interval of the holder's heartbeat in seconds."""
EXPIRY_S = 60.0
"""The holder on a different machine is dead if its heartbeat has not changed for this number of seconds."""
_POLL_S = 0.5
_RETRY_S = 0.01
_EARLY_TIMEOUT_S = 5
_SETTLE_S = 2.0  # on servers without conditional writes: time for the other writers of the same token

_held: ContextVar[frozenset[str]] = ContextVar("held leases", default=frozenset())
_joined: set[str] = set()
_unreleased: set[str] = set()  # claims of this process that ended, but could not be released in storage

LeaseStatus = Literal["free", "held", "unknown"]


@dataclass(frozen=True)
class Holder:
    """The content of a token's file."""

    token: int
    process: ProcessId
    user: str
    command: str
    since: str
    """Start of the lease by the holder's clock, for messages only."""
    claim: str
    """Random, to recognize the own claim."""
    heartbeat: int = 0
    last_heartbeat: str = ""
    """Time of the heartbeat by the holder's clock, for messages only."""
    released: bool = False

    @classmethod
    def current(cls, token: int) -> "Holder":
        """Describe this process as the holder of a token."""
        script = Path(sys.argv[0])
        program = script.parent.name.replace("_ray", "") if script.name == "__main__.py" else script.name or "python"
        command = shlex.join([program, *sys.argv[1:]])[:200]
        return cls(token, ProcessId.current(), _user(), command, _now(), uuid.uuid4().hex)

    def to_bytes(self) -> bytes:
        """Convert the holder to the content of its file."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Holder":
        """Create a holder from the result of `to_bytes`."""
        fields = json.loads(content)
        return cls(**{**fields, "process": ProcessId(**fields["process"])})

    @property
    def status(self) -> LeaseStatus:
        """Whether the lease is held, as far as this machine knows without watching the heartbeat."""
        if self.released or self.claim in _unreleased:
            return "free"
        if not self.process.on_this_machine:
            return "unknown"
        return "held" if self.process.is_alive else "free"

    def describe(self) -> str:
        """Describe the holder in a sentence without a period."""
        state = " (suspended)" if self.process.on_this_machine and self.process.is_suspended else ""
        return (
            f"`{self.command}` by {self.user}, process {self.process.pid}{state} on {self.process.host}, since "
            f"{self.since}, last heartbeat {self.last_heartbeat or self.since}"
        )


class Lease:
    """A lease that this process holds, with the thread of its heartbeat.

    Args:
        fence: the right to write, which is enforced until `release`.
        holder: the content of the token's file.
        interrupt: send SIGINT to the main thread when the lease is lost, see `hold`.
    """

    def __init__(self, fence: Fence, holder: Holder, *, interrupt: bool) -> None:
        self.fence = fence
        self.lost: str | None = None
        """Why the lease was lost, as an error message; None while it is held."""
        self._holder = holder
        self._stop = threading.Event()
        self._interrupt = interrupt
        fences.enforce(fence)
        self._thread = threading.Thread(target=self._beat, name="lease heartbeat", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, folder: str, *, interrupt: bool = False) -> "Lease":
        """Take the lease of a folder, if need be after watching the heartbeat of a holder on a different machine.

        Raises:
            LeaseError: a different process, or a different thread of this one, holds it.
        """
        while True:
            current = last_holder(folder)
            if current is not None and is_held(folder, current):
                raise LeaseError(_refusal(folder, current))
            lease = _claim(folder, current.token + 1 if current else 1, released=False)
            if lease is not None:
                if current is not None and not current.released:
                    logger.info(f"{folder}: the process that worked on it has ended ({current.describe()})")
                return cls(*lease, interrupt=interrupt)

    def release(self) -> None:
        """End the lease, so that the next process need not wait."""
        self._stop.set()
        self._thread.join()
        try:
            if self.lost is None:
                _write_record(self.fence, replace(self._holder, released=True))
                _revoke(self.fence.folder, self.fence.token)
        except (LeaseError, StorageError) as error:  # for instance a full disk
            _unreleased.add(self._holder.claim)
            logger.debug(f"{self.fence.folder}: the lease was not released: {error}")
        finally:
            fences.lift(self.fence)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                self._holder = replace(self._holder, heartbeat=self._holder.heartbeat + 1, last_heartbeat=_now())
                _write_record(self.fence, self._holder)
            except LeaseError as error:
                self._lose(str(error))
                return
            except StorageError as error:  # the next heartbeat may succeed; until then nothing is lost
                logger.debug(f"{self.fence.folder}: no heartbeat: {error}")

    def _lose(self, reason: str) -> None:
        self.lost = reason
        if self._interrupt and not self._stop.is_set():
            signals.interrupt_main_thread()


@contextmanager
def hold(folder: str) -> Iterator[None]:
    """Hold the lease of a folder until the block ends; within a block that holds it, this does nothing.

    Raises:
        LeaseError: a different process holds it, or has taken it over.
    """
    key = fences.folder_key(folder)
    if key in _held.get() or key in _joined:
        yield
        return
    # If the lease is lost, the process need not work on until its next write; the error replaces KeyboardInterrupt.
    lease = Lease.acquire(folder, interrupt=threading.current_thread() is threading.main_thread())
    reset = _held.set(_held.get() | {key})
    try:
        yield
    except BaseException as error:
        if lease.lost is not None:
            raise LeaseError(lease.lost) from error
        raise
    finally:
        _held.reset(reset)
        lease.release()


def current_fences() -> list[dict[str, Any]]:
    """Return the fences that this process enforces as plain data, for the arguments of a worker."""
    return [fence.to_dict() for fence in fences.enforced_fences()]


def join_fences(content: Sequence[dict[str, Any]]) -> None:
    """Enforce exactly the fences of the driver in this worker, see `current_fences`."""
    fences_of_driver = [Fence(**fields) for fields in content]
    keys = {fences.folder_key(fence.folder) for fence in fences_of_driver}
    for fence in fences.enforced_fences():
        if (key := fences.folder_key(fence.folder)) in _joined - keys:
            fences.lift(fence)
            _joined.discard(key)
    for fence in fences_of_driver:
        if fence not in fences.enforced_fences():
            fences.enforce(fence)
            _joined.add(fences.folder_key(fence.folder))


def last_holder(folder: str) -> Holder | None:
    """Return the holder of the highest token, who may have released it; None if the folder was never held."""
    while tokens := fences.list_tokens(folder):
        try:
            return Holder.from_bytes(read_bytes(Fence(folder, tokens[-1]).record))
        except StorageError:
            if fences.list_tokens(folder) == tokens:
                raise
            continue  # a new holder has deleted it
        except (ValueError, TypeError, KeyError):
            return Holder(tokens[-1], ProcessId("an unknown machine", "?", 0, ""), "?", "?", "?", "", heartbeat=-1)
    return None


def refuse_if_held(folder: str) -> None:
    """Raise the error of `hold` early, if a process of this machine holds the lease; this writes nothing.

    Raises:
        LeaseError: a process of this machine works on the folder.
    """
    with suppress(StorageError), short_timeouts(_EARLY_TIMEOUT_S):  # `hold` reports a storage that does not answer
        holder = last_holder(folder)
        if holder is not None and holder.status == "held":
            raise LeaseError(_refusal(folder, holder))


def has_lease_records(folder: str) -> bool:
    """Return whether a process has ever held the lease of a folder."""
    return bool(fences.list_tokens(folder))


def find_holder(folder: str) -> Holder | None:
    """Return the process that works on a folder, after watching its heartbeat if need be; None for a free folder."""
    holder = last_holder(folder)
    return holder if holder is not None and is_held(folder, holder) else None


def is_held(folder: str, holder: Holder) -> bool:
    """Return whether a lease is held, after watching the heartbeat for `EXPIRY_S` if only that can show it."""
    if holder.status != "unknown":
        return holder.status == "held"
    logger.info(f"{folder}: waiting up to {EXPIRY_S:g} s for a heartbeat of {holder.describe()}")
    deadline = time.monotonic() + EXPIRY_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        seen = last_holder(folder)
        if seen is None or seen.released:
            return False
        if (seen.token, seen.heartbeat) != (holder.token, holder.heartbeat):
            return True
    return False


def end_lease(folder: str) -> Holder | None:
    """Take the lease of a folder away from its holder, dead or alive, and release it; return the former holder.

    The former holder cannot write any more; it ends at its next heartbeat or write.
    """
    while (current := last_holder(folder)) is not None and not current.released:
        if _claim(folder, current.token + 1, released=True) is not None:
            return current
    return None


def _claim(folder: str, token: int, *, released: bool) -> tuple[Fence, Holder] | None:
    """Create the file of a token; return None if a different process was faster."""
    fence, holder = Fence(folder, token), replace(Holder.current(token), released=released)
    if not conditional.create_file(fence.record, holder.to_bytes()):
        return None
    if not conditional.server_supports_conditions(fence.record, holder.to_bytes()):
        fence = replace(fence, server_has_conditions=False)
        logger.warning(
            f"the server of {folder} has no conditional writes (If-None-Match): of two commands that start within "
            f"{_SETTLE_S:g} s, both may run. Start only one at a time"
        )
        time.sleep(_SETTLE_S)
        seen = last_holder(folder)
        if seen is None or seen.claim != holder.claim:
            return None
    _revoke(folder, token - 1)
    if not is_remote(folder) and not released:
        fence.staging.mkdir(exist_ok=True)
        if fences.list_tokens(folder)[-1] != token:  # taken over already, perhaps before the folder was created
            shutil.rmtree(fence.staging, ignore_errors=True)
            return None
    return fence, holder


def _revoke(folder: str, last_token: int) -> None:
    """Delete the folders and files of the tokens up to `last_token`; on a disk, their holders can then move no file.

    The file of the highest token stays, because the next token is counted from it.
    """
    tokens = fences.list_tokens(folder)
    if not is_remote(folder):
        parent = Fence(folder, last_token).staging.parent
        for staging in [path for path in parent.iterdir() if path.is_dir() and path.name.isdecimal()]:
            if int(staging.name) <= last_token:
                _delete_staging(staging)
    for token in tokens[:-1]:
        if token <= last_token:
            with suppress(LeaseError, StorageError):  # the next holder deletes it
                delete(Fence(folder, token).record)


def _delete_staging(staging: Path) -> None:
    """Delete a token's folder, in which its holder may still be creating files.

    Raises:
        StorageError: the folder cannot be deleted, and its holder could still publish files.
    """
    deadline = time.monotonic() + EXPIRY_S
    with translate_errors("delete", str(staging)):
        while staging.exists():
            try:
                shutil.rmtree(staging)
            except FileNotFoundError:
                continue  # a different process deletes it too
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EBUSY) or time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_S)


def _write_record(fence: Fence, holder: Holder) -> None:
    write_bytes(fence.record, holder.to_bytes())


def _refusal(folder: str, holder: Holder) -> str:
    if holder.process == ProcessId.current():
        return f"{folder} is in use by this process, in a different thread or block: {holder.describe()}"
    advice = "Wait until it ends, or stop it and run the same command again"
    if holder.process.on_this_machine and holder.process.is_suspended:
        advice = f"Continue it (`fg`, or kill -CONT {holder.process.pid}) or end it (kill -9 {holder.process.pid})"
    return (
        f"{folder} is in use by {holder.describe()}. {advice}. `lakd unlock {shlex.quote(folder)}` takes the folder "
        "away from it: then it cannot write there any more"
    )


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, in a container
        return f"user {os.getuid()}"
