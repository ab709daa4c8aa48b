"""Turn the errors of filesystems into a StorageError that names the file, the cause and what to check."""

from collections.abc import Iterator
from contextlib import contextmanager

from lakd_ray.errors import StorageError
from lakd_ray.storage.disk_space import find_full_disk
from lakd_ray.storage.filesystems import is_remote, s3_error_message


@contextmanager
def translate_errors(action: str, location: str, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn a filesystem's errors into a StorageError that names what to check.

    Args:
        action: a verb for the message, for instance `read`.
        location: the file or folder.
        needed_bytes: minimum size of the complete file, for the message about a full disk.

    Raises:
        DiskFullError: the disk is full or read-only.
        StorageError: any other OSError of the block.
    """
    try:
        yield
    except OSError as error:
        if full := find_full_disk(error, action, location, needed_bytes):
            raise full from error
        message = s3_error_message(error, location) if is_remote(location) else _local_error_message(error)
        raise StorageError(f"cannot {action} {location}: {message}") from error


def _local_error_message(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"it does not exist ({error})"
    return f"{error}; check the path and its permissions"
