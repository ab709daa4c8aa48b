"""Confine names that come from storage, manifests, archives or the network to their folder."""

import os
import posixpath
import unicodedata

from lakd_ray.errors import StorageError
from lakd_ray.storage.filesystems import is_remote, join, resolve_filesystem


def confine(folder: str | os.PathLike[str], name: str, *, allow_links: bool = False) -> str:
    """Return the location of a file in a folder by a name that this program did not choose.

    The name must be a relative path of plain components: no `..`, no leading slash or drive, no scheme, no backslash
    (a separator on other systems), no control characters.

    Args:
        folder: the folder, local or in a bucket.
        name: the name, relative to it.
        allow_links: whether symlinks in a local folder may lead out of it; only where the folder is the user's own.

    Raises:
        StorageError: the name is not of this form, or leads out of the folder.
    """
    root = os.fspath(folder)
    if reason := _objection(name):
        raise StorageError(f"{root} cannot have a file {name!r}: the name {reason}")
    location = join(root, posixpath.normpath(name))
    if not allow_links and not is_remote(root):
        top, path = (os.path.realpath(resolve_filesystem(place)[1]) for place in (root, location))
        if os.path.commonpath([top, path]) != top:
            raise StorageError(f"{location} is a link that leads out of its folder, to {path}: it is not used")
    return location


def _objection(name: object) -> str | None:
    """Return why a name cannot be used, as the rest of a sentence; None if it can."""
    if not isinstance(name, str):
        return "is not a text"
    if "\\" in name or any(unicodedata.category(character) == "Cc" for character in name):
        return "has a backslash or a control character"
    if name.startswith("/") or is_remote(name) or name[1:2] == ":":
        return "is absolute"
    if posixpath.normpath(name) == "." or ".." in name.split("/"):
        return "does not name a file below the folder"
    return None
