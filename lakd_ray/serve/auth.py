"""Who may ask: keys from a file or the environment, compared in constant time."""

import hashlib
import hmac
import os
from contextlib import suppress
from pathlib import Path

from lakd_ray.errors import ConfigError

API_KEYS_ENV = "LAKD_API_KEYS"
_MIN_KEY_LENGTH = 16


class ApiKeys:
    """The keys that open the endpoint; without any, it is open to all who reach it.

    Args:
        file: one key a line, lines that begin with # are notes. It is read again when it changes, so that keys are
            given and taken without a restart.

    Further keys come from the environment variable LAKD_API_KEYS, separated by commas.

    Raises:
        ConfigError: the file cannot be read or holds no key, or a key is too short to be one.
    """

    def __init__(self, path: str | None):
        self._path = None if path is None else Path(path).expanduser()
        self._file_digests: tuple[bytes, ...] = ()
        self._mtime_ns = -1
        self._env_digests = _hash_keys(os.environ.get(API_KEYS_ENV, "").split(","), API_KEYS_ENV)
        self._reload()

    @property
    def required(self) -> bool:
        """Whether a key is asked for."""
        return self._path is not None or bool(self._env_digests)

    def authorizes(self, header: str | None) -> bool:
        """Whether the value of an Authorization header, `Bearer KEY`, opens the endpoint."""
        kind, _, key = (header or "").partition(" ")
        return self.is_valid(key.strip() if kind.lower() == "bearer" else "")

    def is_valid(self, key: str) -> bool:
        """Whether a key opens the endpoint."""
        if not self.required:
            return True
        with suppress(ConfigError):  # whoever writes the file has not finished; the keys of before count
            self._reload()
        given = hashlib.sha256(key.encode()).digest()
        # every key is compared, so that the time does not tell which one it was
        return any([hmac.compare_digest(given, known) for known in (*self._file_digests, *self._env_digests)])  # noqa: C419

    def _reload(self) -> None:
        if self._path is None:
            return
        try:
            changed = self._path.stat().st_mtime_ns
            if changed == self._mtime_ns:
                return
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"serve.api_keys_file: cannot read {self._path}: {error}") from None
        of_file = _hash_keys([line for line in lines if not line.lstrip().startswith("#")], str(self._path))
        if not of_file:
            raise ConfigError(f"serve.api_keys_file: {self._path} holds no key, expected one a line")
        self._file_digests, self._mtime_ns = of_file, changed


def _hash_keys(keys: list[str], source: str) -> tuple[bytes, ...]:
    keys = [key.strip() for key in keys if key.strip()]
    for key in keys:
        if len(key) < _MIN_KEY_LENGTH:
            raise ConfigError(
                f"{source}: a key of {len(key)} characters can be guessed, expected {_MIN_KEY_LENGTH} or more; "
                'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)
