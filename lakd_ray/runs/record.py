"""What made an output folder: the configuration, versions and inputs, written beside the output.

A folder's record is written twice. `start` writes it before any output, so that a folder cannot be continued under
another configuration; `finish` writes it again with the outputs' sizes, so that `is_done` can tell whole from half.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from lakd_ray import storage
from lakd_ray.errors import StageError
from lakd_ray.runs.layout import RECORD_FILE

_VERSIONED_PACKAGES = ("lakd-ray", "ray", "torch", "torchaudio", "transformers", "deepspeed", "pyarrow", "optuna")


def digest(value: Any) -> str:
    """A short stable hash of plain JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def folder_fingerprint(folder: str) -> str:
    """Return a short hash that identifies the files of a folder with checksums, for example a checkpoint.

    Raises:
        StorageError: the folder has no checksums.
    """
    return digest(storage.read_json(storage.join(folder, storage.CHECKSUMS_FILE)))


def read_record(folder: str) -> dict[str, Any] | None:
    """The record of a folder, or None."""
    location = storage.join(folder, RECORD_FILE)
    return dict(storage.read_json(location)) if storage.exists(location) else None


def is_done(folder: str, fingerprint: Mapping[str, Any]) -> bool:
    """Whether the folder holds the finished outputs of exactly this configuration and these inputs.

    Raises:
        StageError: the folder was made by something else; the message names the differences.
    """
    record = read_record(folder)
    if record is None:
        return False
    differences = find_differences(record["fingerprint"], json.loads(json.dumps(fingerprint)))
    if differences:
        raise StageError(
            f"{folder} was made by a different configuration:\n  "
            + "\n  ".join(differences)
            + "\nNothing was changed. Choose another `name`, undo the change, or delete that folder to make it anew."
        )
    return record["finished"] is not None and all(
        storage.exists(storage.join(folder, name)) for name in record["outputs"]
    )


def mark_started(folder: str, fingerprint: Mapping[str, Any]) -> None:
    """Claim a folder for this configuration; call `is_done` first."""
    _write_record(folder, fingerprint, finished=None, outputs=())


def mark_finished(folder: str, fingerprint: Mapping[str, Any], outputs: Sequence[str], **notes: Any) -> None:
    """Declare the folder's outputs (names below it) whole; `notes` are kept in the record and never compared."""
    _write_record(folder, fingerprint, datetime.now(UTC).isoformat(timespec="seconds"), outputs, **notes)


def _write_record(
    folder: str, fingerprint: Mapping[str, Any], finished: str | None, outputs: Sequence[str], **notes: Any
) -> None:
    record = {
        "fingerprint": fingerprint,
        "finished": finished,
        "outputs": list(outputs),
        "versions": package_versions(),
        **notes,
    }
    storage.write_json(storage.join(folder, RECORD_FILE), record)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def find_differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """Lines `dotted.key: found X, now Y` for every difference between two JSON trees."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            line
            for key in sorted(found.keys() | expected.keys())
            for line in find_differences(found.get(key), expected.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if found == expected else [f"{path}: found {_abbreviate(found)}, now {_abbreviate(expected)}"]


def _abbreviate(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
