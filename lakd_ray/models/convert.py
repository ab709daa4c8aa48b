"""A transformers checkpoint from pickle (`pytorch_model.bin`) to safetensors, which alone is read elsewhere."""

import pickle
from pathlib import Path

from lakd_ray.errors import CheckpointError, ConfigError


def convert_to_safetensors(name_or_path: str, folder: str, *, revision: str | None = None) -> str:
    """Write a speech encoder anew, with `model.safetensors`; returns the folder, to be named as `pretrained`.

    Unpickling is confined to tensors (`torch.load(weights_only=True)`): a file that would run code is refused.

    Args:
        name: hub name, or a folder with config.json and pytorch_model.bin.
        folder: a new folder on this machine.
        revision: the hub's revision.

    Raises:
        ConfigError: the folder holds files already.
        CheckpointError: it cannot be read, or holds more than tensors.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification  # seconds to load

    target = Path(folder).expanduser()
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{folder} holds files already: name a new folder")
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision)
        classifies = any("Classification" in each for each in config.architectures or ())
        kind = AutoModelForAudioClassification if classifies else AutoModel
        network = kind.from_pretrained(
            name_or_path, config=config, revision=revision, use_safetensors=False, weights_only=True
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"cannot convert {name_or_path}: {error}. Expected a hub name (with network access or a filled cache) or a folder "
            "with config.json and a pytorch_model.bin of tensors alone."
        ) from error
    network.save_pretrained(target)
    return str(target)
