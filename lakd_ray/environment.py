"""Adapt the environment variables of this process, which its cluster inherits, where libraries would fail with them.

Ray and multiprocessing create Unix sockets below TMPDIR, whose paths may have 107 bytes. Ray, torch and transformers
write to HOME. HTTP clients send requests for this machine to a proxy, with the token of the cluster.
"""

import getpass
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from lakd_ray.scratch import make_scratch_folder, remove_scratch_folder

MAX_TEMPORARY_PATH = 36
"""Bytes of TMPDIR that leave room for the name of a Ray session and of a socket in it."""

_LOCAL_HOSTS = (
    *("localhost", "127.0.0.1", "::1", "0.0.0.0"),
    *("169.254.169.254", "metadata.google.internal"),  # of clouds, which return credentials of the machine
)
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_HOME_PREFIX = "lakd-home-"
_TEMPORARY_VARIABLES = ("TMPDIR", "RAY_TMPDIR")

logger = logging.getLogger(__name__)


@contextmanager
def prepared() -> Iterator[None]:
    """Adapt the environment until the block ends; what is already as needed stays."""
    names = [*_TEMPORARY_VARIABLES, "HOME", "USER", "NO_PROXY", "no_proxy", *_HOME_VARIABLES]
    previous = {name: os.environ.get(name) for name in names}
    try:
        with ExitStack() as stack:
            _shorten_temporary_folders(stack)
            _replace_home()
            bypass_proxies()
            yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        tempfile.tempdir = None  # read again from TMPDIR


def bypass_proxies(*urls: str) -> None:
    """Let HTTP clients of this process send requests for this machine, and for the hosts of some URLs, to no proxy.

    Args:
        urls: addresses of clusters, as URL or `host:port`. With `https`, a proxy sees no token, and the settings of the
            environment apply.
    """
    parts = [urlsplit(url if "://" in url else f"http://{url}") for url in urls]
    hosts = [
        *_LOCAL_HOSTS,
        *_own_names(),
        *(part.hostname for part in parts if part.scheme != "https" and part.hostname),
    ]
    configured = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    present = [host.strip() for host in configured if host.strip()]
    if present == ["*"]:
        return
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*present, *hosts]))


def _own_names() -> list[str]:
    """Return the name of this machine and the address by which other machines reach it."""
    names = [socket.gethostname()]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # fails without a network
        probe.connect(("192.0.2.1", 9))  # selects a route; nothing is sent
        names.append(str(probe.getsockname()[0]))
    return names


def replaced_home() -> str | None:
    """Return the folder that is used for caches in place of the home directory; None if that can be written."""
    folder = str(Path(tempfile.gettempdir(), _HOME_PREFIX))
    used = [os.environ.get("HOME", ""), *(os.environ.get(name, "") for name in _HOME_VARIABLES)]
    return next((value for value in used if value.startswith(folder)), None)


def temporary_folder() -> str:
    """Return the folder below which Ray creates its sessions."""
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def _shorten_temporary_folders(stack: ExitStack) -> None:
    """Replace long names of temporary folders by short links to them, in a private folder that is removed at the end.

    The files stay on the disk that the user or the batch system selected.
    """
    for name in _TEMPORARY_VARIABLES:
        folder = os.environ.get(name)
        if not folder or len(os.fsencode(folder)) <= MAX_TEMPORARY_PATH or not Path(folder).is_dir():
            continue
        if (private := _make_short_folder()) is None:
            continue  # `lakd_ray.cluster` reports it, if the command starts a cluster
        stack.callback(remove_scratch_folder, Path(private))
        link = Path(private, "t")
        link.symlink_to(Path(folder).absolute(), target_is_directory=True)
        os.environ[name] = str(link)
        logger.debug(f"{name} is too long for the sockets of Ray: {folder} is used as {link}")
    tempfile.tempdir = None  # read again from TMPDIR


def _make_short_folder() -> str | None:
    for folder in _SHORT_FOLDERS:
        with suppress(OSError):  # missing or not writable: the next one
            return str(make_scratch_folder(folder))
    return None


_HOME_VARIABLES = {
    "RAY_AUTH_TOKEN_PATH": "auth_token",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TRITON_CACHE_DIR": "triton",
    "MPLCONFIGDIR": "matplotlib",
    "HF_HOME": "huggingface",
}
"""Variables of files and folders that libraries create in the home directory."""


def _replace_home() -> None:
    """Use a private temporary folder for what libraries write to the home directory, if nothing can be written there.

    Service accounts and containers often have no home directory, or one that is read-only, and no name for their user.
    """
    home = Path(os.path.expanduser("~"))
    if os.access(home, os.W_OK | os.X_OK) and home.is_absolute():
        _name_user()
        return
    folder = _private_home()
    if not home.is_dir() or not home.is_absolute():
        os.environ["HOME"] = str(folder)
    elif not _set_home_variables(home, folder):
        return
    _name_user()
    logger.warning(f"the home directory {home} cannot be written: {folder} is used for caches and the token of Ray")


def _set_home_variables(home: Path, folder: Path) -> bool:
    """Let libraries use a folder in place of a read-only home directory; return whether variables were set."""
    missing = [name for name in _HOME_VARIABLES if name not in os.environ and not _is_in_home(name, home)]
    os.environ.update({name: str(folder / _HOME_VARIABLES[name]) for name in missing})
    if "RAY_AUTH_TOKEN_PATH" in missing:
        # An earlier command has created it.
        with suppress(FileExistsError), open(folder / "auth_token", "x", opener=_open_private) as file:
            file.write(secrets.token_hex(32))
    return bool(missing)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _is_in_home(variable: str, home: Path) -> bool:
    """Return whether the home directory has the file or folder already, which can be read there."""
    paths = {"RAY_AUTH_TOKEN_PATH": ".ray/auth_token", "HF_HOME": ".cache/huggingface"}
    return variable in paths and os.access(home / paths[variable], os.R_OK)


def _private_home() -> Path:
    """Return a folder of this user that later commands use again."""
    folder = Path(tempfile.gettempdir(), f"{_HOME_PREFIX}{os.getuid()}")
    with suppress(FileExistsError):  # of an earlier command
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        return Path(tempfile.mkdtemp(prefix=_HOME_PREFIX))  # a different user has made the folder
    return folder


def _name_user() -> None:
    """Give the user a name, which libraries look up, if the system has none for its number."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"
