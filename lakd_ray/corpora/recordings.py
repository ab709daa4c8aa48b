"""The bytes of a recording, wherever a clip says they are."""

from lakd_ray import storage


def read(source: str) -> bytes:
    """The encoded recording of a clip's `source`.

    Raises:
        StorageError: it cannot be read.
    """
    return storage.read_bytes(source)
