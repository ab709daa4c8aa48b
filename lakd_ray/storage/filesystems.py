"""Resolve locations to filesystems, and turn their errors into messages that name the cause.

S3 has two clients: pyarrow transfers the bytes, and s3fs lists, because a listing by pyarrow has no versions. Both have
the same credentials (the AWS_* environment or a profile), endpoint and retries.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any
from urllib.parse import urlparse

import pyarrow.fs as pafs

from lakd_ray.errors import StorageError
from lakd_ray.redaction import has_credentials

# AWS's standard retry mode, in both clients: random pauses of up to 1, 2, 4 .. 20 s, 71 s in total. The clients retry
# instead of the functions of this package, because they retry single parts of an upload and single ranges of a shard,
# and distinguish transient errors from permanent ones such as a refused key.
MAX_ATTEMPTS = 8
_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S = 5, 60
_short_timeout_s: ContextVar[int | None] = ContextVar("short_timeout", default=None)

_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_ACCESS_DENIED_PATTERNS = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE",
    "INVALID_CLIENT_TOKEN",
    "EXPIRED",
    "status 403",
)
_UNREACHABLE_PATTERNS = ("NETWORK_CONNECTION", "REQUEST_TIMEOUT", "Could not connect", "timed out", "Read timeout")


def is_remote(location: str) -> bool:
    """Return whether the location is in a bucket."""
    return "://" in location


def join(location: str, *parts: str) -> str:
    """Append parts to a location, with single slashes between them."""
    return "/".join([location.rstrip("/"), *(part.strip("/") for part in parts)])


def resolve_filesystem(location: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow filesystem of a location and the path in it.

    Raises:
        StorageError: the scheme is not s3, or the bucket is missing.
    """
    if not is_remote(location):
        return _local_filesystem(), os.path.abspath(os.path.expanduser(location))
    path = _bucket_path(location)
    return _s3_filesystem(_s3_settings()), path


def resolve_s3fs(location: str) -> tuple[Any, str]:
    """Return the s3fs filesystem of a location in a bucket and the path in it.

    Raises:
        StorageError: the scheme is not s3, or the bucket is missing.
    """
    return _s3fs_filesystem(_s3_settings()), _bucket_path(location)


@contextmanager
def short_timeouts(seconds: int) -> Iterator[None]:
    """Disable retries in this context and limit each S3 request to the given seconds.

    For checks whether a server responds at all.
    """
    token = _short_timeout_s.set(seconds)
    try:
        yield
    finally:
        _short_timeout_s.reset(token)


def _bucket_path(location: str) -> str:
    scheme, _, path = location.partition("://")
    if scheme != "s3" or not path.strip("/"):
        raise StorageError(f"cannot use {location!r}: expected a path or s3://bucket/prefix")
    if has_credentials(location):
        raise StorageError(
            f"cannot use {location!r}: it contains a key. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, in the environment instead"
        )
    return path


S3Settings = tuple[tuple[str, str], ...]


def _s3_settings() -> S3Settings:
    """Return the S3 settings of the environment, the cache key of clients: a change creates a new client."""
    names = sorted(name for name in os.environ if name.startswith("AWS_"))
    return (
        *((name, os.environ[name]) for name in names),
        ("max_attempts", str(_max_attempts())),
        ("short_timeout", str(_short_timeout_s.get())),
    )


def _max_attempts() -> int:
    return MAX_ATTEMPTS if _short_timeout_s.get() is None else 1


def _timeouts() -> tuple[int, int]:
    """Return the timeouts in seconds of a connection and of a response."""
    short_timeout = _short_timeout_s.get()
    return (
        (_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S)
        if short_timeout is None
        else (min(_CONNECT_TIMEOUT_S, short_timeout), short_timeout)
    )


def _endpoint() -> str | None:
    return next((os.environ[name] for name in _ENDPOINT_VARIABLES if os.environ.get(name)), None)


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


@lru_cache(maxsize=1)
def _local_filesystem() -> pafs.FileSystem:
    return pafs.LocalFileSystem()


@lru_cache(maxsize=4)
def _s3_filesystem(_: S3Settings) -> pafs.FileSystem:
    connect_s, request_s = _timeouts()
    options: dict[str, Any] = {
        "connect_timeout": connect_s,
        "request_timeout": request_s,
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=_max_attempts()),
    }
    if endpoint := _endpoint():
        parsed = urlparse(endpoint)
        options |= {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
    if region := _region():
        options["region"] = region
    return pafs.S3FileSystem(**options)


@lru_cache(maxsize=4)
def _s3fs_filesystem(_: S3Settings) -> Any:
    import s3fs  # takes a second to import, and only listings need it

    endpoint = _endpoint()
    connect_s, request_s = _timeouts()
    filesystem = s3fs.S3FileSystem(
        endpoint_url=endpoint,
        client_kwargs={"region_name": _region()},
        config_kwargs={
            "connect_timeout": connect_s,
            "read_timeout": request_s,
            "retries": {"mode": "standard", "total_max_attempts": _max_attempts()},
            "s3": {"addressing_style": "path" if endpoint else "auto"},  # as pyarrow does
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    filesystem.retries = 1  # its own retries would multiply those of the client
    return filesystem


def s3_error_message(error: OSError, location: str) -> str:
    """Return the cause of an error of a bucket, and what to check."""
    bucket = _bucket_path(location).partition("/")[0]
    if isinstance(error, FileNotFoundError) or "NO_SUCH_BUCKET" in str(error):
        if _bucket_exists(bucket) is False:
            return f"the bucket {bucket} does not exist: correct the name, or create it first"
        return f"it does not exist ({error})"
    if isinstance(error, PermissionError) or any(word in str(error) for word in _ACCESS_DENIED_PATTERNS):
        return (
            f"the server refuses the credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and "
            f"AWS_SESSION_TOKEN if yours has one) or AWS_PROFILE, and check that they may use the bucket {bucket}"
        )
    server = _endpoint() or "Amazon S3"
    if any(word in str(error) for word in _UNREACHABLE_PATTERNS):
        attempts = "1 attempt" if _max_attempts() == 1 else f"{_max_attempts()} attempts"
        return f"no response from {server} in {attempts} ({error}); check AWS_ENDPOINT_URL and the server"
    return f"{error}; check the bucket's name, the AWS_* credentials and AWS_ENDPOINT_URL (now {server})"


def _bucket_exists(bucket: str) -> bool | None:
    """Return whether a bucket exists, or None if the server does not respond."""
    try:
        return bool(_s3_filesystem(_s3_settings()).get_file_info(bucket).type != pafs.FileType.NotFound)
    except OSError:
        return None
