"""Who may ask: keys from a file or the environment, compared in constant time."""

import hashlib
import hmac
import os
from contextlib import suppress
from pathlib import Path

from lakd_ray.errors import ConfigError

VARIABLE = "LAKD_API_KEYS"
_SHORTEST = 16


class Keys:
    """The keys that open the endpoint; without any, it is open to all who reach it.

    Args:
        file: one key a line, lines that begin with # are notes. It is read again when it changes, so that keys are
            given and taken without a restart.

    Further keys come from the environment variable LAKD_API_KEYS, separated by commas.

    Raises:
        ConfigError: the file cannot be read or holds no key, or a key is too short to be one.
    """

    def __init__(self, file: str | None):
        self._file = None if file is None else Path(file).expanduser()
        self._of_file: tuple[bytes, ...] = ()
        self._changed = -1
        self._always = _digests(os.environ.get(VARIABLE, "").split(","), VARIABLE)
        self._refresh()

    @property
    def needed(self) -> bool:
        """Whether a key is asked for."""
        return self._file is not None or bool(self._always)

    def opens(self, header: str | None) -> bool:
        """Whether the value of an Authorization header, `Bearer KEY`, opens the endpoint."""
        kind, _, key = (header or "").partition(" ")
        return self.knows(key.strip() if kind.lower() == "bearer" else "")

    def knows(self, key: str) -> bool:
        """Whether a key opens the endpoint."""
        if not self.needed:
            return True
        with suppress(ConfigError):  # whoever writes the file has not finished; the keys of before count
            self._refresh()
        given = hashlib.sha256(key.encode()).digest()
        # every key is compared, so that the time does not tell which one it was
        return any([hmac.compare_digest(given, known) for known in (*self._of_file, *self._always)])  # noqa: C419

    def _refresh(self) -> None:
        if self._file is None:
            return
        try:
            changed = self._file.stat().st_mtime_ns
            if changed == self._changed:
                return
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"serve.api_keys: cannot read {self._file}: {error}") from None
        of_file = _digests([line for line in lines if not line.lstrip().startswith("#")], str(self._file))
        if not of_file:
            raise ConfigError(f"serve.api_keys: {self._file} holds no key, expected one a line")
        self._of_file, self._changed = of_file, changed


def _digests(keys: list[str], where: str) -> tuple[bytes, ...]:
    keys = [key.strip() for key in keys if key.strip()]
    for key in keys:
        if len(key) < _SHORTEST:
            raise ConfigError(
                f"{where}: a key of {len(key)} characters can be guessed, expected {_SHORTEST} or more; "
                'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)
