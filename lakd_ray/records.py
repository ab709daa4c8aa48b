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

RECORD = "record.json"
_VERSIONS_OF = ("lakd-ray", "ray", "torch", "torchaudio", "transformers", "deepspeed", "pyarrow", "optuna")


def digest(value: Any) -> str:
    """A short stable hash of plain JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read(folder: str) -> dict[str, Any] | None:
    """The record of a folder, or None."""
    location = storage.join(folder, RECORD)
    return dict(storage.read_json(location)) if storage.exists(location) else None


def is_done(folder: str, made_by: Mapping[str, Any]) -> bool:
    """Whether the folder holds the finished outputs of exactly this configuration and these inputs.

    Raises:
        StageError: the folder was made by something else; the message names the differences.
    """
    record = read(folder)
    if record is None:
        return False
    differences = compare(record["made_by"], json.loads(json.dumps(made_by)))
    if differences:
        raise StageError(
            f"{folder} was made by a different configuration:\n  "
            + "\n  ".join(differences)
            + "\nNothing was changed. Choose another `name`, undo the change, or delete that folder to make it anew."
        )
    return record["finished"] is not None and all(
        storage.exists(storage.join(folder, name)) for name in record["outputs"]
    )


def start(folder: str, made_by: Mapping[str, Any]) -> None:
    """Claim a folder for this configuration; call `is_done` first."""
    _write(folder, made_by, finished=None, outputs=())


def finish(folder: str, made_by: Mapping[str, Any], outputs: Sequence[str], **notes: Any) -> None:
    """Declare the folder's outputs (names below it) whole; `notes` are kept in the record and never compared."""
    _write(folder, made_by, datetime.now(UTC).isoformat(timespec="seconds"), outputs, **notes)


def _write(folder: str, made_by: Mapping[str, Any], finished: str | None, outputs: Sequence[str], **notes: Any) -> None:
    record = {"made_by": made_by, "finished": finished, "outputs": list(outputs), "versions": versions(), **notes}
    storage.write_json(storage.join(folder, RECORD), record)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def compare(found: Any, wanted: Any, path: str = "") -> list[str]:
    """Lines `dotted.key: found X, now Y` for every difference between two JSON trees."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            line
            for key in sorted(found.keys() | wanted.keys())
            for line in compare(found.get(key), wanted.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if found == wanted else [f"{path}: found {_short(found)}, now {_short(wanted)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
