"""Checkpoints for release: whole, verified, and without what is only its trainer's business."""

import json
import secrets
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from lakd_ray import storage
from lakd_ray.errors import ConfigError
from lakd_ray.models.checkpoint import CARD, read_card

_TOLD = ("paradigm", "setup", "languages", "emotions", "fold", "seed", "variant")


def run(checkpoint: str, folder: str) -> str:
    """Copy a checkpoint to a folder that others may have; returns the folder.

    Its card names no speakers but carries salted hashes of them (`lakd_ray.provenance`), and tells of its training what
    it was and how it did on dev, not where anything lay.

    Raises:
        StorageError: the checkpoint is missing, incomplete or damaged.
        CheckpointError: it is not one of this project's.
        ConfigError: the folder holds something already.
    """
    if any(True for _ in storage.list_files(folder)):
        raise ConfigError(f"{folder} holds files already: name a new folder, or delete it")
    with storage.fetched_folder(checkpoint) as source, tempfile.TemporaryDirectory(prefix="lakd-") as scratch:
        card = read_card(source)
        run = card.training.get("run", {})
        training = {"run": {name: run[name] for name in _TOLD if name in run}, "dev": card.training.get("dev", {})}
        training["corpora"] = list(card.corpora)
        training |= {name: card.training[name] for name in ("layers",) if name in card.training}
        released = replace(card, provenance=card.provenance.salted(secrets.token_hex(8)), training=training)
        shutil.copytree(source, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD, storage.SEAL))
        Path(scratch, CARD).write_text(json.dumps(released.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
        _forget_paths(Path(scratch, "config.json"))
        storage.publish_folder(Path(scratch), folder)
    return folder


def _forget_paths(file: Path) -> None:
    """Of a transformers configuration: it notes where it was read from, and so does one within it."""

    def without(content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {name: without(value) for name, value in content.items() if name != "_name_or_path"}

    content = without(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
