"""Release of checkpoints as verified folders with a model card, without private data of the training.

model_card  README.md of a release
onnx        ONNX graphs and their accuracy
"""

import json
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.errors import ConfigError
from lakd_ray.models import onnx_export
from lakd_ray.models.checkpoint import METADATA_FILE, CheckpointMetadata, read_local_metadata
from lakd_ray.ops.release import model_card
from lakd_ray.ops.release import onnx as graphs
from lakd_ray.scratch import scratch_folder

_PUBLIC_RUN_FIELDS: tuple[str, ...] = ("id", "paradigm", "setup", "languages", "emotions", "fold", "seed", "variant")
_PUBLIC_RUN_FIELDS += ("loss", "teachers", "teacher_languages")  # run ids and numbers only
MODEL_CARD_FILE = "README.md"
# Not copied: written again for the release if required.
_EXCLUDED_FILES = (
    ".*",  # not verified
    METADATA_FILE,
    storage.CHECKSUMS_FILE,
    MODEL_CARD_FILE,
    graphs.ONNX_REPORT_FILE,
    f"{onnx_export.MODEL_FILE}*",
    f"{onnx_export.INT8_MODEL_FILE}*",
)


def export_checkpoint(
    checkpoint: str,
    folder: str,
    *,
    report: str | None = None,
    experiment: Experiment | None = None,
    onnx: bool = False,
    int8: bool = False,
) -> str:
    """Copy a checkpoint to a publishable folder with a model card, and return the folder.

    The release has salted hashes instead of speaker names (`lakd_ray.data.provenance`). Of the training it has the
    settings of the run and the scores on dev, but no paths.

    Args:
        checkpoint: location of the checkpoint.
        folder: location of the release; must not have files.
        report: location of a report.json with rows of this run: test results for the card.
        experiment: the experiment that trained it: its corpora for the card, its test utterances to evaluate int8.
        onnx: also write an ONNX graph, see `lakd_ray.models.onnx_export`.
        int8: also write the graph in int8, and the fp32 graph that it is quantized from.

    Raises:
        StorageError: the checkpoint or the report is missing, incomplete or damaged.
        CheckpointError: it is not a checkpoint of lakd-ray, or its graph has different outputs.
        ConfigError: the folder has files, the report has no rows of this run, or a package is missing.
        DataLeakageError, DataError: see `lakd_ray.inference.backend_accuracy.held_out`.
    """
    if any(True for _ in storage.list_files(folder)):
        raise ConfigError(f"{folder} is not empty: choose a new folder, or delete it")
    if onnx or int8:
        onnx_export.require_onnx_packages()
    with storage.open_checksummed_folder(checkpoint) as source, scratch_folder() as scratch:
        card = read_local_metadata(source)
        context = model_card.CardContext.load(card, report, experiment)  # fails before the slow steps
        released = replace(
            card, provenance=card.provenance.anonymized(secrets.token_hex(8)), training=_public_training(card)
        )
        shutil.copytree(source, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_EXCLUDED_FILES))
        Path(scratch, METADATA_FILE).write_text(
            json.dumps(released.to_json(), indent=1, ensure_ascii=False), encoding="utf-8"
        )
        network = _strip_paths(Path(scratch, "config.json"))
        figures = graphs.write_onnx_graphs(source, Path(scratch), experiment, int8=int8) if onnx or int8 else None
        Path(scratch, MODEL_CARD_FILE).write_text(
            model_card.render_model_card(card, network, context, figures), encoding="utf-8"
        )
        storage.write_checksummed_folder(Path(scratch), folder)
    return folder


def _public_training(card: CheckpointMetadata) -> dict[str, Any]:
    """Return the part of the training settings that a release has."""
    run = card.training.get("run", {})
    training: dict[str, Any] = {
        "run": {name: run[name] for name in _PUBLIC_RUN_FIELDS if name in run},
        "dev": card.training.get("dev", {}),
        "corpora": list(card.corpora),
        "datasets": list(card.datasets),
        "frozen": card.is_encoder_frozen,
    }
    return training | {name: card.training[name] for name in ("layers",) if name in card.training}


def _strip_paths(file: Path) -> dict[str, Any]:
    """Remove the paths from a transformers configuration file, nested ones included, and return the rest."""

    def remove(content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {name: remove(value) for name, value in content.items() if name != "_name_or_path"}

    content: dict[str, Any] = remove(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return content
