"""Estimates beside what real files and models take."""

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import yaml
from support import tiny_models as tiny

from lakd_ray import storage
from lakd_ray.audio import encode_flac
from lakd_ray.cli.main import main
from lakd_ray.config import Experiment, ModelConfig, to_dict
from lakd_ray.errors import ConfigError
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import build_model, save_checkpoint
from lakd_ray.ops import disk_usage, size_estimates

RATE, SECONDS, CLIPS = 22_050, 0.5, 20


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "disk" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


@pytest.fixture
def corpus(root: str, tmp_path: Path) -> int:
    """Recordings of half a second and a manifest; returns their bytes."""
    random = np.random.default_rng(0)
    for number in range(CLIPS):
        soundfile.write(tmp_path / "clip.wav", 0.05 * random.standard_normal(round(RATE * SECONDS)), RATE)
        storage.write_bytes(f"{root}/corpus/{number}.wav", (tmp_path / "clip.wav").read_bytes())
    storage.write_bytes(f"{root}/corpus/manifest.csv", b"path,emotion,language,speaker\n")
    return sum(info.size for info in storage.list_files(f"{root}/corpus"))


def content(root: str) -> dict[str, Any]:
    recipe = {"model": to_dict(tiny.config()), "optim": {"epochs": 1}}
    corpora = [{"name": "c", "root": "{storage}/corpus"}]
    data = {"storage": root, "languages": ["en", "fi"], "corpora": corpora}
    return {"name": "e", **data, "teacher": recipe, "student": recipe}


def experiment(root: str, **changes: Any) -> Experiment:
    return Experiment.model_validate(content(root) | changes)


def stages(config: Experiment) -> dict[str, disk_usage.StageUsage]:
    return {part.stage: part for part in disk_usage.estimate_usage(config).stages}


def test_before_anything_is_there(root, corpus):
    usage = disk_usage.estimate_usage(experiment(root))
    assert usage.corpora == corpus
    assert usage.current == 0
    assert usage.notes == ()
    shards = next(part for part in usage.stages if part.stage == "prepare").final
    samples = np.random.default_rng(1).integers(-160, 160, size=round(CLIPS * SECONDS * 16_000)).astype(np.int16)
    assert len(encode_flac(samples)) < shards < 2 * samples.nbytes
    assert usage.required > usage.final
    assert (usage.free is None) == storage.is_remote(root)


def test_what_lies_there(root, corpus):
    config = experiment(root, stages=["prepare", "teachers"])
    table = pa.table({"num_samples": [16_000] * 1000})
    storage.write_table(f"{config.folder}/prepare/manifest.parquet", table)
    storage.write_bytes(f"{config.folder}/prepare/shards/a.parquet", bytes(5_000_000))
    storage.write_bytes(f"{config.folder}/teachers/teacher-en/best-0001/model.safetensors", bytes(2_000))
    storage.write_bytes(f"{config.folder}/mine/notes.txt", bytes(10))
    found = stages(config)
    assert set(found) == {"prepare", "teachers", "other"}
    assert found["prepare"].current == found["prepare"].final > 5_000_000
    assert found["teachers"].current == 2_000
    assert (found["other"].contents, found["other"].current) == ("mine", 10)
    assert found["teachers"].final > 3 * 1000 * 4 * 4  # logits of three teachers on the manifest's utterances


def test_more_runs_take_more(tmp_path):
    few = stages(experiment(str(tmp_path)))
    many = stages(experiment(str(tmp_path), tune={"trials": 32}, distill={"setups": ["monolingual", "multilingual"]}))
    assert many["tune"].final == 2 * few["tune"].final
    assert many["distill"].final > few["distill"].final
    assert few["teachers"].final < few["teachers"].peak


def test_cached_features_take_room(root, corpus):
    frozen = {"model": {"pretrained": "not/here"}}
    recipes = {"teacher": frozen, "student": frozen}
    plain = stages(experiment(root, **recipes))["prepare"]
    cached = stages(experiment(root, **recipes, train={"cache_features": True}))["prepare"]
    assert cached.final > 2 * plain.final
    assert "features" in cached.contents
    assert "features" not in plain.contents


def test_a_base_has_its_own(tmp_path):
    usage = disk_usage.estimate_usage(experiment(str(tmp_path), base_experiment="other"))
    assert {"prepare", "teachers"}.isdisjoint(part.stage for part in usage.stages)
    assert "teachers: those of other are used" in usage.notes


@pytest.mark.parametrize("frozen", [False, True])
def test_models_are_counted_as_they_are_built(tmp_path, frozen):
    network = tiny.model().network
    model = tiny.config()
    if frozen:
        network.freeze_feature_encoder()
        network.config.save_pretrained(tmp_path)
        model = ModelConfig(pretrained=str(tmp_path))
    everything = sum(parameter.numel() for parameter in network.parameters())
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    found = size_estimates.count_parameters(model, notes := [])
    head = 0 if frozen else 2 * (16 + 1)  # the architecture alone is counted with transformers' two classes, not four
    assert [everything - found[0], trained - found[1]] == [head, head]
    assert notes == []
    assert (trained < everything) == frozen


@pytest.mark.parametrize("changes", [{}, {"num_layers": 1}, {"freeze_encoder": True}], ids=str)
@pytest.mark.parametrize("shape", [tiny.ARCHITECTURE, tiny.WHISPER], ids=["wav2vec2", "whisper"])
def test_every_family_and_part_of_one_is_counted_as_it_is_built(tmp_path, shape, changes):
    start = build_model(ModelConfig(config=shape, freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0).network
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "start"), start, tiny.card(), scratch=tmp_path / "scratch")
    model = ModelConfig(pretrained=str(tmp_path / "start"), **changes)
    built = list(build_model(model, PAPER_EMOTIONS, seed=0).parameters())
    trained = sum(each.numel() for each in built if each.requires_grad)
    assert size_estimates.count_parameters(model, []) == (sum(each.numel() for each in built), trained)


def test_a_checkpoint_is_not_larger_than_estimated(tmp_path):
    tiny.checkpoint(tmp_path)
    taken = sum(info.size for info in storage.list_files(str(tmp_path / "tiny")))
    assert (
        taken
        < size_estimates.estimate_checkpoint_size(tiny.config(), experiment(str(tmp_path)), []).checkpoint
        < taken + 2_000_000
    )


@pytest.mark.parametrize(
    ("zero_stage", "precision", "per_parameter"),
    [
        (0, "fp32", 12),
        (0, "bf16", 14),
        (1, "fp32", 16),
        (1, "bf16", 14),
        (2, "fp32", 16),
        (3, "fp32", 12),
        (3, "bf16", 12),
    ],
)
def test_the_state_to_go_on_from_is_as_measured(tmp_path, zero_stage, precision, per_parameter):
    """Bytes that DeepSpeed 0.19 saved for each parameter of a model of 470,212."""
    config = experiment(str(tmp_path), train={"zero_stage": zero_stage, "precision": precision})
    everything, _ = size_estimates.count_parameters(tiny.config(), [])
    found = size_estimates.estimate_checkpoint_size(tiny.config(), config, [])
    assert found.resume - found.checkpoint == everything * (per_parameter - 4)  # a checkpoint has 4 for each


def test_an_unknown_model_is_assumed_and_told(tmp_path):
    notes: list[str] = []
    assert size_estimates.count_parameters(ModelConfig(pretrained="nobody/nothing"), notes)[0] > 90_000_000
    assert "nobody/nothing is not on this machine" in notes[0]
    with pytest.raises(ConfigError, match="refused by transformers"):
        size_estimates.count_parameters(ModelConfig(config={"model_type": "nothing"}, freeze_feature_encoder=False), [])


def test_command(tmp_path, capsys, monkeypatch):
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(content(str(tmp_path))))
    assert main(["disk", str(tmp_path / "e.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "no recordings below" in printed
    assert ": enough" in printed
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 1000)
    assert main(["disk", str(tmp_path / "e.yaml")]) == 0
    assert "NOT ENOUGH" in capsys.readouterr().out
    assert main(["disk", str(tmp_path / "e.yaml"), "--json"]) == 0
    usage = json.loads(capsys.readouterr().out)
    assert usage["free"] == 1000
    assert usage["total"]["final"] == sum(part["final"] for part in usage["stages"])
