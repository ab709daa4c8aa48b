"""Test converting pickled checkpoints to safetensors, with unpickling restricted to tensors."""

import os
from pathlib import Path

import pytest
import torch
from support import tiny_models as tiny
from transformers import AutoConfig, AutoModel

from lakd_ray.config import ModelConfig
from lakd_ray.errors import CheckpointError, ConfigError
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import build_model
from lakd_ray.models.convert import convert_to_safetensors


def write_pickled(folder: Path, state: object) -> str:
    folder.mkdir()
    AutoConfig.for_model(**tiny.ARCHITECTURE).save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")
    return str(folder)


def test_the_weights_do_not_change(tmp_path: Path):
    encoder = AutoModel.from_config(AutoConfig.for_model(**tiny.ARCHITECTURE))
    old = write_pickled(tmp_path / "old", encoder.state_dict())
    with pytest.raises(ConfigError, match="lakd to-safetensors"):
        build_model(ModelConfig(pretrained=old), PAPER_EMOTIONS, seed=0)
    new = convert_to_safetensors(old, str(tmp_path / "new"))
    assert sorted(file.name for file in Path(new).iterdir()) == ["config.json", "model.safetensors", "provenance.json"]
    built = build_model(ModelConfig(pretrained=new), PAPER_EMOTIONS, seed=0)
    weights = built.backbone.encoder.state_dict()
    for name, value in encoder.state_dict().items():
        assert torch.equal(weights[name], value), name


class MaliciousPickle:
    """Creates a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path):
    old = write_pickled(tmp_path / "old", {"weight": MaliciousPickle(tmp_path / "mark")})
    with pytest.raises(CheckpointError, match="only tensors"):
        convert_to_safetensors(old, str(tmp_path / "new"))
    assert not (tmp_path / "mark").exists() and not (tmp_path / "new").exists()


def test_existing_files_are_not_overwritten(tmp_path: Path):
    (tmp_path / "file").write_text("content")
    with pytest.raises(ConfigError, match="is not empty"):
        convert_to_safetensors("anything", str(tmp_path))
