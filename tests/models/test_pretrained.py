"""Pretrained networks: no code of a model's folder is run, and models in a bucket are copied once and verified."""

import json
import sys
from pathlib import Path

import pytest
import torch
from support import tiny_models as tiny

from lakd_ray import storage
from lakd_ray.cli.main import main
from lakd_ray.config import ExternalTeacherConfig, ModelConfig
from lakd_ray.errors import CheckpointError, LakdError, StorageError
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import build_model, load_checkpoint, pretrained
from lakd_ray.models.convert import convert_to_safetensors
from lakd_ray.models.external_teacher import load_external_teacher

CODE = """from pathlib import Path
from transformers import PreTrainedConfig
Path({mark!r}).touch()
class Config(PreTrainedConfig):
    model_type = "own"
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Return a checkpoint folder whose configuration refers to Python code in it, and the mark of that code."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder, mark = Path(tiny.checkpoint(tmp_path)), tmp_path / "mark"
    auto_map = {
        "AutoConfig": "own_code.Config",
        "AutoModel": "own_code.Model",
        "AutoModelForAudioClassification": "own_code.Model",
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    (folder / "own_code.py").write_text(CODE.format(mark=str(mark)))
    (folder / storage.CHECKSUMS_FILE).unlink()
    storage.write_checksummed_folder(folder, str(tmp_path / "sealed"))
    return str(tmp_path / "sealed"), mark


LOADERS = {
    "checkpoint": load_checkpoint,
    "student": lambda folder: build_model(ModelConfig(pretrained=folder), PAPER_EMOTIONS, seed=0),
    "external teacher": lambda folder: load_external_teacher(
        ExternalTeacherConfig(name="theirs", checkpoint=folder), PAPER_EMOTIONS
    ),
    "conversion": lambda folder: convert_to_safetensors(folder, f"{folder}-converted"),
    "size": lambda folder: pretrained.load_config(folder, local_files_only=True),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_code_of_a_model_is_never_run(loader, hostile, monkeypatch):
    folder, mark = hostile
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(LakdError, match=r"has the model_type 'own', and it refers to code of its own"):
        LOADERS[loader](folder)
    assert not mark.exists() and "own_code" not in sys.modules


def test_the_command_line_rejects_a_model_with_code(hostile, monkeypatch, capsys):
    folder, mark = hostile
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert main(["to-safetensors", folder, f"{folder}-converted"]) == 2
    assert "which is never run" in capsys.readouterr().err
    assert not mark.exists()


def write_pretrained(folder: Path, **changes: object) -> str:
    tiny.model().network.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


def test_code_beside_a_known_architecture_is_ignored(tmp_path):
    folder = write_pretrained(tmp_path / "model", auto_map={"AutoConfig": "own_code.Config"})
    (tmp_path / "model" / "own_code.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    build_model(ModelConfig(pretrained=folder), PAPER_EMOTIONS, seed=0)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_kernels_of_a_configuration_are_not_loaded(tmp_path, key):
    folder = write_pretrained(tmp_path / "model", **{key: "someone/kernels"})
    assert pretrained.load_config(folder)._attn_implementation in (None, "eager", "sdpa")
    build_model(ModelConfig(pretrained=folder), PAPER_EMOTIONS, seed=0)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/tmp/secret.safetensors", "weights.bin"])
def test_weights_outside_of_the_folder_are_rejected(tmp_path, name):
    folder = write_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = {"metadata": {}, "weight_map": {"classifier.weight": name}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="expected names of safetensors files in the same folder"):
        pretrained.load_network(folder)


def test_quantized_weights_are_rejected(tmp_path):
    folder = write_pretrained(tmp_path / "model", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(CheckpointError, match="quantized weights"):
        pretrained.load_config(folder)


@pytest.mark.parametrize("content", ["[]", '{"model_id": 1}', '"text"'])
def test_metadata_of_other_kinds_are_an_error(tmp_path, content):
    folder = Path(tiny.checkpoint(tmp_path))
    (folder / "lakd.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not the metadata of a checkpoint"):
        pretrained_metadata(folder)


def pretrained_metadata(folder: Path) -> None:
    from lakd_ray.models.checkpoint import read_local_metadata

    read_local_metadata(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lakd-ray"


def upload(folder: str, location: str, names: tuple[str, ...] = ("config.json", "model.safetensors")) -> str:
    for name in names:
        storage.write_bytes(storage.join(location, name), Path(folder, name).read_bytes())
    return location


def test_a_model_in_a_bucket_is_copied_once_and_verified(s3, cache, tmp_path):
    location = upload(write_pretrained(tmp_path / "model"), storage.join(s3, "pretrained/encoder"))
    storage.write_bytes(storage.join(location, "own_code.py"), b"raise SystemExit")
    built = build_model(ModelConfig(pretrained=location), PAPER_EMOTIONS, seed=0)
    local = build_model(ModelConfig(pretrained=str(tmp_path / "model")), PAPER_EMOTIONS, seed=0)
    weights = local.backbone.encoder.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in built.backbone.encoder.state_dict().items())
    folder = Path(pretrained.fetch(location))
    assert sorted(file.name for file in folder.iterdir()) == ["SEAL.json", "config.json", "model.safetensors"]
    assert cache.stat().st_mode & 0o077 == 0
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert Path(pretrained.fetch(location)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    (folder / "model.safetensors").write_bytes(b"damaged")
    pretrained.fetch(location)
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()


def test_a_changed_model_in_a_bucket_is_copied_again(s3, cache, tmp_path):
    location = upload(write_pretrained(tmp_path / "model"), storage.join(s3, "pretrained/changed"))
    first = pretrained.fetch(location)
    upload(write_pretrained(tmp_path / "model", hidden_dropout=0.5), location, ("config.json",))
    assert pretrained.fetch(location) != first


def test_a_damaged_checkpoint_in_a_bucket_is_rejected(s3, cache, tmp_path):
    location = storage.join(s3, "pretrained/checkpoint")
    storage.write_checksummed_folder(Path(tiny.checkpoint(tmp_path)), location)
    assert Path(pretrained.fetch(location), "lakd.json").is_file()
    storage.write_bytes(storage.join(location, "model.safetensors"), b"other")
    with pytest.raises(StorageError, match="is damaged"):
        pretrained.fetch(location)


def test_an_external_teacher_may_be_in_a_bucket(s3, cache, tmp_path):
    location = upload(write_pretrained(tmp_path / "model"), storage.join(s3, "pretrained/teacher"))
    load_external_teacher(ExternalTeacherConfig(name="theirs", checkpoint=location), PAPER_EMOTIONS)


def test_a_location_without_a_model_is_an_error(s3, cache):
    with pytest.raises(StorageError, match=r"has no config\.json"):
        pretrained.fetch(storage.join(s3, "pretrained/missing"))
