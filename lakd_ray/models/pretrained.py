"""Load networks from outside the experiment with transformers; no other module calls `from_pretrained`.

A model's folder may come from any source, so it supplies only weights and the sizes of a known architecture:

- Code in the folder or repository is never run: `trust_remote_code=False`, without which transformers prompts.
- Weights are safetensors. `load_pickled_network` alone reads pickles, restricted to tensors.
- `model_type` must be an encoder family of this project. Quantized weights and attention kernels that a configuration
  names are rejected or ignored: transformers would load further packages or code for them.
- A location in a bucket is first copied to this node's cache, see `fetch`.

`tests/test_untrusted_loading.py` checks that no other module has calls that run code from files.
"""

import fcntl
import hashlib
import json
import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lakd_ray import storage
from lakd_ray.errors import CheckpointError, StorageError
from lakd_ray.models.backbone import BACKBONES
from lakd_ray.models.outputs import LANGUAGE_AWARE_MODEL_TYPE
from lakd_ray.models.progress_bars import hide_progress_bars
from lakd_ray.scratch import make_scratch_folder, scratch_folder

logger = logging.getLogger(__name__)

LOADING_ERRORS = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError),
    *(SafetensorError, pickle.UnpicklingError),
)
"""What transformers and its readers raise for a model that is missing, damaged or of a different kind."""

CONFIG_FILE = "config.json"
_INDEX_FILE = "model.safetensors.index.json"
_FETCHED_SUFFIXES = (".json", ".safetensors")
_PLAIN_ATTENTION = (None, "eager", "sdpa")


def load_config(
    source: str | Path, revision: str | None = None, *, local_files_only: bool = False, **changes: Any
) -> Any:
    """Load the transformers configuration of a model.

    Args:
        source: hub name, folder, or location in a bucket, of which only the configuration is read.
        revision: revision on the hub.
        local_files_only: do not request the hub.
        changes: values that replace those of the file.

    Raises:
        CheckpointError: its family is not supported, or it needs more than weights.
        LOADING_ERRORS: it cannot be read.
    """
    from transformers import AutoConfig, PreTrainedConfig  # seconds to load

    import lakd_ray.models.language_aware  # noqa: F401 -- registers the model type

    with _config_folder(source) as folder:
        options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
        content, _ = PreTrainedConfig.get_config_dict(folder, **options)
        _check_content(str(source), content)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **options, **changes)
    for part in (config, getattr(config, "backbone", None)):
        _disable_kernels(part)
    return config


@contextmanager
def _config_folder(source: str | Path) -> Iterator[str]:
    """Yield the source, or for a location in a bucket a folder with its configuration."""
    if not storage.is_remote(str(source)):
        yield str(source)
        return
    with scratch_folder() as folder:
        Path(folder, CONFIG_FILE).write_bytes(storage.read_bytes(storage.join(str(source), CONFIG_FILE)))
        yield str(folder)


def _check_content(source: str, content: Mapping[str, Any]) -> None:
    """Check that a configuration describes a network of this project's families, in plain weights."""
    family = content.get("model_type")
    if family is None and "auto_map" not in content:
        return  # transformers reports what is missing
    if family not in (*BACKBONES, LANGUAGE_AWARE_MODEL_TYPE):
        needs_code = ", and it refers to code of its own, which is never run" if "auto_map" in content else ""
        raise CheckpointError(
            f"{source} has the model_type {family!r}{needs_code}: expected one of {', '.join(BACKBONES)}"
        )
    if "quantization_config" in content:
        raise CheckpointError(
            f"{source} has quantized weights: expected a model in fp32, fp16 or bf16. Use the original model"
        )


def _disable_kernels(config: Any) -> None:
    """Replace an attention kernel that a configuration names, which transformers would load from the hub."""
    if isinstance(config, dict):
        for name in ("attn_implementation", "_attn_implementation"):
            if config.get(name) not in _PLAIN_ATTENTION:
                del config[name]
    elif getattr(config, "_attn_implementation", None) not in _PLAIN_ATTENTION:
        config._attn_implementation = None


def load_network(
    source: str | Path, revision: str | None = None, *, config: Any = None, ignore_mismatched_sizes: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Load a classifier from safetensors in fp32; return it with transformers' `loading_info`.

    Args:
        source: hub name, folder, or location in a bucket.
        revision: revision on the hub.
        config: its configuration, if it is not that of the source; from `load_config`.
        ignore_mismatched_sizes: replace weights of a different size by random ones.

    Raises:
        CheckpointError, StorageError: see `load_config` and `fetch`.
        LOADING_ERRORS: it cannot be read.
    """
    from transformers import AutoModelForAudioClassification  # seconds to load

    folder = fetch(str(source))
    _check_shards(Path(folder))
    config = load_config(folder, revision) if config is None else config
    with hide_progress_bars():
        network, loading = AutoModelForAudioClassification.from_pretrained(
            folder,
            config=config,
            revision=revision,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            output_loading_info=True,
        )
    return network, loading


def _check_shards(folder: Path) -> None:
    """Check that weights in several files are safetensors in the folder itself, since the model lists the files."""
    if not (index := folder / _INDEX_FILE).is_file():
        return
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if wrong := sorted(str(name) for name in names if Path(name).name != name or not name.endswith(".safetensors")):
        raise CheckpointError(
            f"{index} lists {', '.join(wrong)}: expected names of safetensors files in the same folder"
        )


def load_pickled_network(source: str, revision: str | None = None) -> Any:
    """Load a network from pytorch_model.bin, from which only tensors are unpickled, to convert it.

    Raises:
        CheckpointError: its family is not supported.
        LOADING_ERRORS: it cannot be read, or has more than tensors.
    """
    from transformers import AutoModel, AutoModelForAudioClassification  # seconds to load

    config = load_config(source, revision)
    classifies = any("Classification" in name for name in config.architectures or ())
    model_class = AutoModelForAudioClassification if classifies else AutoModel
    with hide_progress_bars():
        return model_class.from_pretrained(
            source,
            config=config,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=False,
            weights_only=True,
        )


def build_network(config: Any) -> Any:
    """Build a classifier with random weights from its transformers configuration."""
    from transformers import AutoModelForAudioClassification  # seconds to load

    return AutoModelForAudioClassification.from_config(config, trust_remote_code=False)


def fetch(location: str) -> str:
    """Return a local folder with a model's files, or the unchanged name if it is not in a bucket.

    A model in a bucket is copied once per node, into `lakd-ray/` in the cache of the hub (HF_HOME), and the copy is
    verified each time it is used. Only JSON files and safetensors are copied. Where the model has checksums
    (`SEAL.json`), they must match.

    Raises:
        StorageError: it cannot be read or written.
        CorruptedError: its files do not match its checksums.
    """
    if not storage.is_remote(location):
        return location
    files = [info for info in storage.list_files(location) if info.location == storage.join(location, info.name)]
    files = [info for info in files if info.name.endswith(_FETCHED_SUFFIXES)]
    if CONFIG_FILE not in {info.name for info in files}:
        raise StorageError(f"{location} has no {CONFIG_FILE}: expected a folder with config.json and model.safetensors")
    version = repr((location, [(info.name, info.size, info.version) for info in files]))
    folder = _cache_folder() / hashlib.sha256(version.encode()).hexdigest()[:24]
    with _locked(folder.with_suffix(".lock")):
        if not _is_intact(folder):
            logger.info(f"copying {location} to {folder}")
            _copy_model(location, files, folder)
    return str(folder)


def _copy_model(location: str, files: list[storage.FileInfo], folder: Path) -> None:
    if storage.exists(storage.join(location, storage.CHECKSUMS_FILE)):
        with storage.open_checksummed_folder(location) as verified:
            storage.write_checksummed_folder(verified, str(folder))
        return
    with scratch_folder(str(folder.parent)) as scratch:
        for info in files:
            content = storage.read_bytes(info.location)
            if len(content) != info.size:
                raise StorageError(f"{info.location} changed while it was read: {len(content)} of {info.size} bytes")
            Path(scratch, info.name).write_bytes(content)
        storage.write_checksummed_folder(Path(scratch), str(folder))


def _is_intact(folder: Path) -> bool:
    try:
        with storage.open_checksummed_folder(str(folder)):
            return True
    except StorageError:
        return False


def _cache_folder() -> Path:
    """Return the folder of this node's copies: in the cache of the hub, or a temporary one if that is not writable."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME, "lakd-ray")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        logger.warning(f"cannot write to {folder} ({error.strerror}): set HF_HOME to a folder of your own")
    return folder if os.access(folder, os.W_OK) else make_scratch_folder()


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock that ends with its process, so that one process of the node copies a model."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
