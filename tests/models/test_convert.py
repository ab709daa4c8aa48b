"""Pickled checkpoints: read once, as tensors alone, and written as safetensors."""

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


def pickled(folder: Path, state: object) -> str:
    folder.mkdir()
    AutoConfig.for_model(**tiny.ARCHITECTURE).save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")
    return str(folder)


def test_the_same_weights(tmp_path: Path):
    encoder = AutoModel.from_config(AutoConfig.for_model(**tiny.ARCHITECTURE))
    old = pickled(tmp_path / "old", encoder.state_dict())
    with pytest.raises(ConfigError, match="lakd to-safetensors"):
        build_model(ModelConfig(pretrained=old), PAPER_EMOTIONS, seed=0)
    new = convert_to_safetensors(old, str(tmp_path / "new"))
    assert sorted(file.name for file in Path(new).iterdir()) == ["config.json", "model.safetensors"]
    built = build_model(ModelConfig(pretrained=new), PAPER_EMOTIONS, seed=0)
    weights = built.backbone.encoder.state_dict()
    for name, value in encoder.state_dict().items():
        assert torch.equal(weights[name], value), name


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_code_is_not_run(tmp_path: Path):
    old = pickled(tmp_path / "old", {"weight": Evil(tmp_path / "mark")})
    with pytest.raises(CheckpointError, match="tensors alone"):
        convert_to_safetensors(old, str(tmp_path / "new"))
    assert not (tmp_path / "mark").exists() and not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="holds files"):
        convert_to_safetensors("anything", str(tmp_path))
