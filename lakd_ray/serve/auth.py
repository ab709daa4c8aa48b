"""Check API keys from a file or the environment, compared in constant time."""

import hashlib
import hmac
import os
from contextlib import suppress
from pathlib import Path

from lakd_ray.errors import ConfigError

API_KEYS_ENV = "LAKD_API_KEYS"
_MIN_KEY_LENGTH = 16


class ApiKeys:
    """The keys that the endpoint accepts; without any, it is open to every client.

    Args:
        path: file with one key per line; lines that begin with # are comments. It is read again when it changes, so
            keys can be added and revoked without a restart.

    The environment variable LAKD_API_KEYS adds further keys, separated by commas.

    Raises:
        ConfigError: the file cannot be read or contains no key, or a key is too short.
    """

    def __init__(self, path: str | None):
        self._path = None if path is None else Path(path).expanduser()
        self._file_digests: tuple[bytes, ...] = ()
        self._mtime_ns = -1
        self._env_digests = _hash_keys(os.environ.get(API_KEYS_ENV, "").split(","), API_KEYS_ENV)
        self._reload()

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self._path is not None or bool(self._env_digests)

    def authorizes(self, header: str | None) -> bool:
        """Return whether an Authorization header, `Bearer KEY`, has a valid key."""
        scheme, _, key = (header or "").partition(" ")
        return self.is_valid(key.strip() if scheme.lower() == "bearer" else "")

    def is_valid(self, key: str) -> bool:
        """Return whether the endpoint accepts the key."""
        if not self.required:
            return True
        with suppress(ConfigError):  # the file may be half written: the previous keys stay valid
            self._reload()
        digest = hashlib.sha256(key.encode()).digest()
        # all keys are compared, so that the response time does not reveal which one matched
        digests = (*self._file_digests, *self._env_digests)
        return any([hmac.compare_digest(digest, valid) for valid in digests])  # noqa: C419 -- all, in constant time

    def _reload(self) -> None:
        if self._path is None:
            return
        try:
            mtime_ns = self._path.stat().st_mtime_ns
            if mtime_ns == self._mtime_ns:
                return
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"serve.api_keys_file: cannot read {self._path}: {error}") from None
        digests = _hash_keys([line for line in lines if not line.lstrip().startswith("#")], str(self._path))
        if not digests:
            raise ConfigError(f"serve.api_keys_file: {self._path} contains no key, expected one per line")
        self._file_digests, self._mtime_ns = digests, mtime_ns


def _hash_keys(keys: list[str], source: str) -> tuple[bytes, ...]:
    keys = [key.strip() for key in keys if key.strip()]
    for key in keys:
        if len(key) < _MIN_KEY_LENGTH:
            raise ConfigError(
                f"{source}: a key of {len(key)} characters is easy to guess, expected at least {_MIN_KEY_LENGTH}; "
                'generate one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)
