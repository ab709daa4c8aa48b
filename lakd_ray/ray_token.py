"""The token of a Ray cluster: whoever can read its file can run code as this user, so only the owner may read it.

Ray itself writes the file with the permissions of the umask, which usually lets all users of the machine read it.
"""

import logging
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

REPLACE_HINT = (
    "if other people use this machine, replace it: stop the clusters that use it, delete the file, and copy the new one"
)


def token_file() -> Path:
    """Return the file from which Ray reads the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()


def is_readable_by_others(file: Path) -> bool:
    """Return whether other users of the machine can read a file or its folder's entry of it."""
    return bool(file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def prepare_token() -> None:
    """Create the token of a local cluster if it is missing, readable by its owner alone; restrict an existing file.

    Ray creates it otherwise, when it starts a cluster. Nothing happens where authentication is off, or the token is in
    RAY_AUTH_TOKEN.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    file = token_file()
    if file.exists():
        restrict_token(file)
    elif not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        with suppress(OSError):  # Ray's own attempt then reports the cause
            _create_token(file)


def restrict_token(file: Path) -> None:
    """Make a file of a token readable by its owner alone, if this process may do that, and log it."""
    with suppress(OSError):  # a file of a different user, or a read-only disk
        if is_readable_by_others(file):
            file.chmod(0o600)
            logger.warning(f"{file} could be read by other users of this machine, and now only by you; {REPLACE_HINT}")


def _create_token(file: Path) -> None:
    """Write a new token; a process that does the same at this time keeps its own."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # a process that started at the same time was first
            os.link(temporary, file)
    finally:
        temporary.unlink()
