"""Keep credentials out of everything that is shown or stored: messages, logs, reports, records.

Credentials belong in the environment. `find_credentials` finds those in settings, which are then rejected; `redact`
replaces those in text, whether they come from an address, a query or the environment of this process. Every `LakdError`
is redacted when it becomes text.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

HIDDEN = "***"
_SECRET_NAME = r"(?:passw(?:or)?d|passphrase|secret|token|credentials?|signature|api[_-]?keys?|access[_-]?key)"
# A password may contain a slash; a port and a path that contains an @ are no password.
_ADDRESS = re.compile(
    r"(?P<start>\w://)(?:[^\s/:@\"'<>]*:(?!\d+(?:/|$))[^\s\"'<>]*|[^\s/:@\"'<>]{20,})@", re.IGNORECASE
)
_QUERY = re.compile(rf"(?P<start>(?:[?&;][\w-]*{_SECRET_NAME}|\bpassword)=)[^\s&;#\"'<>]+", re.IGNORECASE)
_HEADER = re.compile(r"(?P<start>\bbearer\s+)(?=\S*\d)[\w.~+/-]{8,}=*", re.IGNORECASE)
_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{20,}\b")
_SECRET_VARIABLE = re.compile(rf"\w*{_SECRET_NAME}", re.IGNORECASE)
_MIN_LENGTH = 6
"""Shorter values of the environment are not replaced in text, because they would match words by chance."""


def redact(text: str) -> str:
    """Return text with passwords in addresses, keys in queries and headers, and secrets of the environment replaced."""
    text = _ADDRESS.sub(rf"\g<start>{HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<start>{HIDDEN}", text)
    text = _HEADER.sub(rf"\g<start>{HIDDEN}", text)
    text = _KEY.sub(HIDDEN, text)
    for value in _secret_values():
        text = text.replace(value, HIDDEN)
    return text


def _secret_values() -> list[str]:
    """Return the values of this process's environment variables with names of secrets, the longest first."""
    values = {
        part.strip()
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.fullmatch(name)
        for part in (value.split(",") if name == "LAKD_API_KEYS" else [value])
    }
    return sorted((value for value in values if len(value) >= _MIN_LENGTH), key=len, reverse=True)


def find_credentials(settings: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted key of each setting whose address contains a password, a key or a token."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from find_credentials(value, f"{path}.{key}" if path else str(key))
    elif isinstance(settings, list | tuple):
        for index, value in enumerate(settings):
            yield from find_credentials(value, f"{path}.{index}")
    elif isinstance(settings, str) and has_credentials(settings):
        yield path


def has_credentials(address: str) -> bool:
    """Return whether an address contains a password, a key or a token."""
    return "://" in address and bool(_ADDRESS.search(address) or _QUERY.search(address))
