"""Convert a transformers checkpoint from pickle (`pytorch_model.bin`) to safetensors, the format that `lakd` loads."""

import shutil
import uuid
from pathlib import Path

from lakd_ray import storage
from lakd_ray.errors import CheckpointError, ConfigError
from lakd_ray.models import pretrained
from lakd_ray.models.origin import write_origin
from lakd_ray.models.progress_bars import hide_progress_bars


def convert_to_safetensors(name_or_path: str, folder: str, *, revision: str | None = None) -> str:
    """Write a copy of a speech encoder with `model.safetensors`; return its folder, to use as `model.pretrained`.

    The folder also has `provenance.json`: the source, and what is known about its training data.

    Unpickling is confined to tensors (`torch.load(weights_only=True)`): a file that would run code is rejected.

    Args:
        name_or_path: hub name, or a folder with config.json and pytorch_model.bin.
        folder: a new local folder.
        revision: revision on the hub.

    Raises:
        ConfigError: the folder is not empty.
        DiskFullError: the disk has no room for the copy.
        CheckpointError: the checkpoint cannot be read, or contains more than tensors.
    """
    target = Path(folder).expanduser()
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{folder} is not empty: choose a new folder")
    try:
        network = pretrained.load_pickled_network(name_or_path, revision)
    except pretrained.LOADING_ERRORS as error:
        raise CheckpointError(
            f"cannot convert {name_or_path}: {str(error).rstrip('.')}. Expected a hub name (with network access or a "
            "filled cache) or a folder with config.json and a pytorch_model.bin that contains only tensors."
        ) from error
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with storage.explain_full_disk("write", temporary), hide_progress_bars():
            network.save_pretrained(temporary)
            write_origin(temporary, name_or_path, revision)
            storage.publish_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(target)
