"""Check API keys from a file or the environment, compared in constant time.

The driver resolves the keys (`resolve_keys`) and passes their digests in the arguments of the deployment: the processes
of a running cluster do not have the environment of the driver, and Ray shows arguments in its dashboard. The ingress
checks requests with them (`ApiKeys`), and reads the file again when it changes.
"""

import hashlib
import hmac
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lakd_ray.addresses import is_loopback
from lakd_ray.config import ServeConfig
from lakd_ray.errors import ConfigError

API_KEYS_ENV = "LAKD_API_KEYS"
_MIN_KEY_LENGTH = 16

logger = logging.getLogger(__name__)


class KeyDigests(BaseModel):
    """The SHA-256 digests of the keys of a deployment, in hexadecimal; no key in plain text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: tuple[str, ...] = ()
    """Of the keys in LAKD_API_KEYS of the driver."""
    path: str | None = None
    """Absolute path of the file of keys; None without one."""
    file: tuple[str, ...] = ()
    """Of the keys in the file, as the driver read it."""
    machine: str = ""
    """The machine that read the file, see `_identify_machine`."""

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self.path is not None or bool(self.environment)


def resolve_keys(config: ServeConfig) -> KeyDigests:
    """Read the keys of the `serve` section and of LAKD_API_KEYS in this process.

    Raises:
        ConfigError: the file cannot be read, there is no key where one is expected, a key is too short, or the endpoint
            would be open to other machines without keys.
    """
    keys, path = _read_environment(), _absolute_path(config)
    digests = KeyDigests(
        environment=tuple(map(_digest, keys)),
        path=path,
        file=() if path is None else tuple(map(_digest, _read_file(path))),
        machine=_identify_machine(),
    )
    if not digests.required and not config.open_access and not is_loopback(config.host):
        raise ConfigError(
            f"serve.host: {config.host} would accept requests of other machines without a key; set "
            f"serve.api_keys_file or {API_KEYS_ENV}, or serve.open_access: true behind a gateway that authenticates "
            "its clients"
        )
    return digests


def find_own_key(config: ServeConfig) -> str:
    """Return a key that the driver may use for its own requests; empty if the endpoint needs none.

    Raises:
        ConfigError: as for `resolve_keys`.
    """
    path = _absolute_path(config)
    keys = [*_read_environment(), *(() if path is None else _read_file(path))]
    return keys[0] if keys else ""


def parse_bearer(header: str | None) -> str:
    """Return the key of an Authorization header, `Bearer KEY`; empty if it has none."""
    scheme, _, key = (header or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


class ApiKeys:
    """The keys that the endpoint accepts; without any, it is open to every client.

    The keys of the environment are those of the driver. The file is read again when it changes, so keys can be added
    and revoked without a restart; a file that is emptied, deleted or unreadable admits no client. On a machine that
    does not have the file, the keys that the driver read are valid.
    """

    def __init__(self, digests: KeyDigests):
        self._environment, self._file = _to_bytes(digests.environment), _to_bytes(digests.file)
        self.required = digests.required
        # A file that the driver read on this machine and that is missing now was deleted: that revokes its keys.
        has_file = digests.path is not None and (digests.machine == _identify_machine() or Path(digests.path).exists())
        self._path = Path(digests.path) if has_file and digests.path else None
        self._version: tuple[int, ...] | None = None
        if digests.path is not None and self._path is None:
            logger.warning(
                f"{digests.path} is not on this machine: the keys that it had at deployment are valid; deploy again to "
                "change them"
            )

    def authorizes(self, header: str | None) -> bool:
        """Return whether an Authorization header, `Bearer KEY`, has a valid key."""
        return self.is_valid(parse_bearer(header))

    def is_valid(self, key: str) -> bool:
        """Return whether the endpoint accepts the key."""
        if not self.required:
            return True
        self._reload()
        digest = bytes.fromhex(_digest(key))
        # all keys are compared, so that the response time does not reveal which one matched
        return any([hmac.compare_digest(digest, valid) for valid in (*self._environment, *self._file)])  # noqa: C419 -- all, in constant time

    def _reload(self) -> None:
        """Read the file if it has changed; keys of a file that cannot be read are not valid any more."""
        if self._path is None:
            return
        try:
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            if version == self._version:
                return
            keys, problem = _read_file(str(self._path), strict=False), ""
        except (OSError, ConfigError) as error:
            version, keys, problem = (0, 0, 0), [], str(error)
        if version != self._version and not keys:
            logger.error(f"serve.api_keys_file: {self._path} has no key, so its keys are not valid any more {problem}")
        self._file, self._version = _to_bytes(map(_digest, keys)), version


def _identify_machine() -> str:
    """Return an identifier of the machine or container, whose processes have the same files."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/mnt').stat().st_ino}"
    except OSError:  # not Linux
        return os.uname().nodename


def _absolute_path(config: ServeConfig) -> str | None:
    # symbolic links stay: mounted secrets of Kubernetes change by replacing one
    return None if config.api_keys_file is None else os.path.abspath(os.path.expanduser(config.api_keys_file))


def _read_environment() -> list[str]:
    """Return the keys in LAKD_API_KEYS.

    Raises:
        ConfigError: it is set and has no key, or an invalid one.
    """
    value = os.environ.get(API_KEYS_ENV)
    if value is None:
        return []
    keys = [key.strip() for key in value.split(",") if key.strip()]
    if not keys:
        raise ConfigError(f"{API_KEYS_ENV} is set but contains no key; unset it, or set keys separated by commas")
    _validate(keys, API_KEYS_ENV)
    return keys


def _read_file(path: str, *, strict: bool = True) -> list[str]:
    """Return the keys of a file; lines that begin with # are comments.

    Args:
        path: the file.
        strict: reject a file without keys or with an invalid one. Otherwise ignore invalid keys.

    Raises:
        ConfigError: the file cannot be read, or is rejected.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.api_keys_file: cannot read {path}: {error}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not strict:
        return [key for key in keys if _is_valid(key)]
    if not keys:
        raise ConfigError(f"serve.api_keys_file: {path} contains no key, expected one per line")
    _validate(keys, path)
    return keys


def _is_valid(key: str) -> bool:
    return len(key) >= _MIN_KEY_LENGTH and key.isascii() and key.isprintable()


def _validate(keys: Iterable[str], source: str) -> None:
    """Reject keys that are easy to guess or that an HTTP header cannot carry."""
    for key in keys:
        if not _is_valid(key):
            raise ConfigError(
                f"{source}: a key of {len(key)} characters is too short or has characters outside ASCII, expected at "
                f"least {_MIN_KEY_LENGTH} letters and digits; generate one with: "
                'python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _to_bytes(digests: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(map(bytes.fromhex, digests))
