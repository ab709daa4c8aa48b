"""Write files only on a condition: create a file that does not exist, or replace one that is unchanged.

On a disk, a new file gets its name by a hard link, which fails if the name exists (also on NFS). In a bucket, the
server decides: `If-None-Match: *` creates, and `If-Match: <ETag>` replaces the version that was read. Servers that
ignore or reject conditions exist; `server_supports_conditions` recognizes them.
"""

import errno
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lakd_ray.storage.errors import translate_errors
from lakd_ray.storage.filesystems import is_remote, resolve_filesystem, resolve_s3fs
from lakd_ray.storage.syncing import make_folder, sync_folder

_MAX_ATTEMPTS = 20  # writers of one file that take turns
_CONFLICT_STATUSES = (409, 412)  # 409: two conditional requests at the same moment; 412: the condition is false
_MARK = "lakd-write"
_UNSUPPORTED_STATUSES = (400, 405, 501)
_LINK_UNSUPPORTED = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def create_file(location: str, content: bytes, temporary: Path | None = None) -> bool:
    """Create a file with a content; return False and change nothing if it exists.

    Args:
        location: the file.
        content: its content.
        temporary: path of a temporary file on the same disk; beside the file if None.

    Raises:
        StorageError: the file cannot be written.
    """
    with translate_errors("write", location):
        if not is_remote(location):
            return _create_local(Path(resolve_filesystem(location)[1]), content, temporary)
        return _put(location, content, IfNoneMatch="*")


def server_supports_conditions(location: str, content: bytes) -> bool:
    """Return whether the server of a bucket refuses to create a file that exists.

    Args:
        location: an existing file.
        content: its content; a server that ignores the condition writes it again.
    """
    with translate_errors("write", location):
        return not is_remote(location) or not _put(location, content, IfNoneMatch="*")


def replace_object(location: str, content: bytes, before_write: Callable[[], None]) -> None:
    """Write a file in a bucket, and start again if a different writer changes it after `before_write` was called.

    A process that is suspended between the call and the write thus cannot overwrite what was written meanwhile.

    Raises:
        StorageError: the file cannot be written.
    """
    _replace(location, lambda _: content, before_write)


def append_line(location: str, line: str, before_write: Callable[[], None]) -> None:
    """Append a line to a text file, which several processes may do; no line is lost.

    A torn last line, from a power failure, is ended first: readers skip it.

    Raises:
        StorageError: the file cannot be written.
    """
    encoded = line.encode() + b"\n"
    if is_remote(location):
        _replace(location, lambda found: _end_line(found or b"") + encoded, before_write)
        return
    path = Path(resolve_filesystem(location)[1])
    with translate_errors("write", location):
        make_folder(path.parent)
        before_write()
        with path.open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                encoded = b"" + (b"" if stream.read(1) == b"\n" else b"\n") + encoded
            stream.write(encoded)
            stream.flush()
            os.fsync(stream.fileno())


def _end_line(content: bytes) -> bytes:
    return content + b"\n" if content and not content.endswith(b"\n") else content


def _create_local(path: Path, content: bytes, temporary: Path | None) -> bool:
    make_folder(path.parent)
    temporary = temporary or path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        _write_synced(temporary, content, os.O_TRUNC)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:  # for instance exFAT and some FUSE file systems
            if error.errno not in _LINK_UNSUPPORTED:
                raise
            try:
                _write_synced(path, content, os.O_EXCL)
            except FileExistsError:
                return False
        sync_folder(path.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _write_synced(path: Path, content: bytes, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o666)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _replace(location: str, content_of: Callable[[bytes | None], bytes], before_write: Callable[[], None]) -> None:
    with translate_errors("write", location):
        for _ in range(_MAX_ATTEMPTS):
            found, version = _read_with_version(location)
            content = content_of(found)
            before_write()
            condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
            if _put(location, content, **condition):
                return
        raise OSError(f"{_MAX_ATTEMPTS} times a different process changed it at the same moment")


def _read_with_version(location: str) -> tuple[bytes | None, str | None]:
    """Return the content and the ETag of an object, or None for both if it does not exist."""
    with suppress(FileNotFoundError):  # returns None for both
        response, read = _call(location, "get_object")
        return read(response["Body"]), response["ETag"]
    return None, None


def _put(location: str, content: bytes, **condition: str) -> bool:
    """Upload an object if the condition holds, and return whether it did; without it if the server has none.

    The client repeats a request whose response was lost, and then the condition is false because of the first attempt:
    a random mark in the metadata of the object recognizes it.
    """
    mark = uuid.uuid4().hex
    try:
        _call(location, "put_object", Body=content, Metadata={_MARK: mark}, **condition)
    except OSError as error:
        status = _status(error)
        if status in _CONFLICT_STATUSES:
            with suppress(FileNotFoundError):  # deleted meanwhile: a different writer has it
                return bool(_call(location, "head_object")[0].get("Metadata", {}).get(_MARK) == mark)
            return False
        if status not in _UNSUPPORTED_STATUSES:
            raise
        _call(location, "put_object", Body=content)
    return True


def _status(error: OSError) -> int | None:
    response = getattr(error.__cause__, "response", None) or {}
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _call(location: str, method: str, **arguments: Any) -> tuple[Any, Callable[[Any], bytes]]:
    """Call a method of the S3 client; return its response, and a function that reads the body of the response."""
    from botocore.exceptions import BotoCoreError
    from fsspec.asyn import sync

    filesystem, path = resolve_s3fs(location)
    bucket, _, key = path.partition("/")
    try:
        response = filesystem.call_s3(method, Bucket=bucket, Key=key, **arguments)
    except BotoCoreError as error:
        raise OSError(str(error)) from error

    def read(body: Any) -> bytes:
        return bytes(sync(filesystem.loop, body.read))

    return response, read
