"""Write the configuration, versions and inputs of an output folder to the folder itself.

A record is written twice. `mark_started` writes it before any output, so that a folder cannot be continued with a
different configuration; `mark_finished` writes it again with the names of the outputs, so that `is_done` can
distinguish complete from incomplete folders.
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

# Part of records of version 0.1.0; the device does not decide to which configuration a folder belongs.
_IGNORED_KEY = "train.gpu"


def digest(value: Any) -> str:
    """Return a short stable hash of plain JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def folder_fingerprint(folder: str) -> str:
    """Return a short hash that identifies the files of a folder with checksums, for example a checkpoint.

    Raises:
        StorageError: the folder has no checksums.
    """
    return digest(storage.read_json(storage.join(folder, storage.CHECKSUMS_FILE)))


def read_record(folder: str) -> dict[str, Any] | None:
    """Read the record of a folder; None if it has no record."""
    location = storage.join(folder, RECORD_FILE)
    return dict(storage.read_json(location)) if storage.exists(location) else None


def is_done(folder: str, fingerprint: Mapping[str, Any]) -> bool:
    """Return whether the folder contains the complete outputs of exactly this configuration and these inputs.

    Args:
        folder: the output folder.
        fingerprint: configuration and inputs, as plain JSON types.

    Raises:
        StageError: the folder belongs to a different configuration; the message lists the differences.
    """
    record = read_record(folder)
    if record is None:
        return False
    differences = find_differences(record["fingerprint"], json.loads(json.dumps(fingerprint)))
    if differences:
        raise StageError(
            f"{folder} belongs to a different configuration:\n  "
            + "\n  ".join(differences)
            + "\nNothing was written. Choose a different `name`, undo the change, or delete that folder to start again."
        )
    return record["finished"] is not None and all(
        storage.exists(storage.confine(folder, name, allow_links=True)) for name in record["outputs"]
    )


def mark_started(folder: str, fingerprint: Mapping[str, Any], *, replace: bool = False) -> None:
    """Reserve a folder for this configuration; call `is_done` first.

    Args:
        folder: the output folder.
        fingerprint: configuration and inputs, as plain JSON types.
        replace: the folder is derived from others and may be written for different inputs.

    Raises:
        StageError: meanwhile a different process has reserved the folder for a different configuration.
    """
    record = _record(fingerprint, finished=None, outputs=())
    location = storage.join(folder, RECORD_FILE)
    if replace:
        storage.write_json(location, record)
    elif not storage.create_json(location, record):
        is_done(folder, fingerprint)
        storage.write_json(location, record)


def mark_finished(folder: str, fingerprint: Mapping[str, Any], outputs: Sequence[str], **notes: Any) -> None:
    """Record that the folder is complete.

    Args:
        folder: the output folder.
        fingerprint: configuration and inputs, as plain JSON types.
        outputs: names of the output files, relative to the folder.
        notes: further entries of the record, which are never compared.
    """
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    storage.write_json(storage.join(folder, RECORD_FILE), _record(fingerprint, finished, outputs, **notes))


def _record(fingerprint: Mapping[str, Any], finished: str | None, outputs: Sequence[str], **notes: Any) -> Any:
    return {
        "fingerprint": fingerprint,
        "finished": finished,
        "outputs": list(outputs),
        "versions": package_versions(),
        **notes,
    }


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that influence results."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def find_differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """Return a line for every difference between two JSON trees, such as `fold: found 0, now 1`."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            line
            for key in sorted(found.keys() | expected.keys())
            for line in find_differences(found.get(key), expected.get(key), f"{path}.{key}" if path else str(key))
        ]
    if found == expected or path.endswith(_IGNORED_KEY):
        return []
    return [f"{path}: found {_abbreviate(found)}, now {_abbreviate(expected)}"]


def _abbreviate(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
