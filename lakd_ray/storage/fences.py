"""Keep a process that lost the lease of a folder from writing there.

`lakd_ray.storage.lease` gives each holder of a folder a token, a number that only grows. The token is a file in the
folder `lease/`; the highest number is the holder. `enforce` makes this process check the token in every function of
`lakd_ray.storage` that publishes, creates, appends or deletes a file below the folder.

A check alone leaves a gap: a process can be suspended between the check and the write. So, on a disk, files are written
in the folder of the token and moved from there; taking over a lease deletes that folder, and the move fails. In a
bucket, small files (records, states, manifests, the study) are written only if they are unchanged since the check.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from lakd_ray.errors import LeaseError
from lakd_ray.storage.errors import translate_errors
from lakd_ray.storage.filesystems import is_remote, join, resolve_filesystem

LEASE_FOLDER = "lease"
_SUFFIX = ".json"

_enforced: dict[str, "Fence"] = {}  # by folder


@dataclass(frozen=True)
class Fence:
    """The right to write below a folder, which ends when a higher token appears; workers get it as plain data."""

    folder: str
    token: int
    server_has_conditions: bool = True
    """Whether the server of the bucket honors conditional writes."""

    @property
    def record(self) -> str:
        """The file of the token."""
        return join(self.folder, LEASE_FOLDER, f"{self.token:06d}{_SUFFIX}")

    @property
    def staging(self) -> Path:
        """The folder on a disk from which files are moved to their names."""
        return Path(resolve_filesystem(join(self.folder, LEASE_FOLDER))[1], f"{self.token:06d}")

    def check(self) -> None:
        """Check that the token is still the highest one.

        Raises:
            LeaseError: a different process has taken over the folder, or the folder was deleted.
        """
        tokens = list_tokens(self.folder)
        if tokens and tokens[-1] == self.token:
            return
        reason = "a different process has taken it over" if tokens else "the folder was deleted"
        raise LeaseError(
            f"this process may no longer write to {self.folder}: {reason}. Nothing was overwritten. Run the same "
            "command again if no other process works on it"
        )

    def temporary_path(self, path: Path) -> Path | None:
        """Return a path in the token's folder for a file that will be moved to `path`; None on a different disk."""
        try:
            same_disk = self.staging.stat().st_dev == path.parent.stat().st_dev
        except FileNotFoundError:
            self.check()
            raise
        return self.staging / f".{path.name}.{uuid.uuid4().hex[:8]}.part" if same_disk else None

    @contextmanager
    def explain(self) -> Iterator[None]:
        """Raise a LeaseError instead of an error that is the consequence of the loss of the lease."""
        try:
            yield
        except FileNotFoundError:
            self.check()
            raise

    def to_dict(self) -> dict[str, Any]:
        """Convert the fence to plain JSON types, for Ray."""
        return asdict(self)


def list_tokens(folder: str) -> list[int]:
    """Return the tokens of a folder in ascending order; the last one is the holder's."""
    location = join(folder, LEASE_FOLDER)
    filesystem, path = resolve_filesystem(location)
    with translate_errors("list", location):
        if is_remote(location):
            infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=False, allow_not_found=True))
            names = [info.base_name for info in infos]
        else:
            names = [file.name for file in Path(path).iterdir()] if Path(path).is_dir() else []
    numbers = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return sorted(int(number) for number in numbers if number.isdecimal())


def enforce(fence: Fence) -> None:
    """Check the fence in all later writes of this process below its folder."""
    current = _enforced.get(folder_key(fence.folder))
    if current is None or current.token <= fence.token:
        _enforced[folder_key(fence.folder)] = fence


def lift(fence: Fence) -> None:
    """End what `enforce` has started."""
    if _enforced.get(folder_key(fence.folder)) == fence:
        del _enforced[folder_key(fence.folder)]


def find_fences(location: str) -> list[Fence]:
    """Return the fences of the folders that contain a location, the innermost first."""
    found, key = [], folder_key(location)
    while key:
        if key in _enforced:
            found.append(_enforced[key])
        key = key.rpartition("/")[0]
    return found


def check_fences(location: str) -> None:
    """Check that this process may write to a location; without a fence it may.

    Raises:
        LeaseError: it has lost the lease of a folder that contains it.
    """
    for fence in find_fences(location):
        fence.check()


def enforced_fences() -> list[Fence]:
    """Return the fences that this process enforces."""
    return list(_enforced.values())


def folder_key(location: str) -> str:
    """Return a location in the form in which fences are looked up."""
    return location.rstrip("/") if is_remote(location) else resolve_filesystem(location)[1].rstrip("/")
