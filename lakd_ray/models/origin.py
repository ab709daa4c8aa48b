"""Find out what a model from outside the experiment was trained on.

The sources, in this order: the record of a checkpoint of this project (`lakd.json`), the record of a converted model
(`provenance.json`), the list of known models. Otherwise its training data is not known. The name of a folder, or its
configuration, may be that of a known model, which adds the training data of that model; the folder remains unknown,
because it may have been trained further. A snapshot in a cache of the hub is the model of the hub.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lakd_ray import storage
from lakd_ray.data.provenance import Provenance
from lakd_ray.models.checkpoint import METADATA_FILE, CheckpointMetadata
from lakd_ray.models.known_pretrained import known_provenance, listed_name, name_of_cached_folder, name_of_copy

ORIGIN_FILE = "provenance.json"


def read_origin(location: str, revision: str | None = None, *, name: str | None = None) -> Provenance:
    """Return the training data of a pretrained model or an external teacher.

    Args:
        location: folder, or name on the hub; of a model on the hub only cached files are read.
        revision: revision on the hub.
        name: name of the model if its training data is not known; by default that on the hub or of the folder.

    Raises:
        StorageError: a record cannot be read.
    """
    if recorded := read_checkpoint_record(location, revision):
        return recorded
    if converted := read_model_file(location, revision, ORIGIN_FILE):
        return Provenance.from_json(converted["provenance"])
    is_folder = _is_folder(location)
    hub_name = name_of_cached_folder(location) if is_folder else location
    if hub_name and (known := known_provenance(hub_name)):
        return known
    unknown = Provenance(undisclosed_models=frozenset({name or (_folder_name(location) if is_folder else location)}))
    return unknown.inherit(_base_models(location) if is_folder else ())


def read_checkpoint_record(location: str, revision: str | None = None) -> Provenance | None:
    """Return the record of a checkpoint of this project; None if it is not one."""
    content = read_model_file(location, revision, METADATA_FILE)
    return CheckpointMetadata.from_json(content).provenance if content else None


def write_origin(folder: Path, source: str, revision: str | None) -> None:
    """Write what is known about the training data of a model's source into the folder of its copy."""
    content = {
        "source": _folder_name(source) if _is_folder(source) else source,
        "revision": revision,
        "provenance": read_origin(source, revision).to_json(),
    }
    (folder / ORIGIN_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_folder(location: str) -> bool:
    """Return whether a location is a folder or remote, and not a name on the hub; as transformers does."""
    return storage.is_remote(location) or Path(location).is_absolute() or Path(location).is_dir()


def _folder_name(location: str) -> str:
    """Return the last part of a location: the others may be private. A snapshot in a cache of the hub has its name."""
    return name_of_cached_folder(location) or location.rstrip("/").rpartition("/")[2]


def _base_models(folder: str) -> Iterator[Provenance]:
    """Yield the training data of the known models from which a folder may be made.

    Its configuration names one (or a folder of one), and its own name may be that of a copy.
    """
    config = read_model_file(folder, None, "config.json") or {}
    source = str(config.get("_name_or_path"))
    for name in dict.fromkeys((listed_name(source) or name_of_copy(source), name_of_copy(folder))):
        if name and (known := known_provenance(name)):
            yield known


def read_model_file(location: str, revision: str | None, file: str) -> dict[str, Any] | None:
    """Read a file of a folder, or of a model in the cache of the hub; None if it has no such file."""
    if _is_folder(location):
        path = storage.join(location, file)
        return dict(storage.read_json(path)) if storage.exists(path) else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(location, file, revision=revision)
    except HFValidationError:  # not a valid name; loading the model reports it
        return None
    return dict(json.loads(Path(cached).read_text(encoding="utf-8"))) if isinstance(cached, str) else None
