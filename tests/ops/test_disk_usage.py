"""Estimates of disk usage against the sizes of real files and models."""

import json
import shutil
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
    """Write recordings of half a second and a manifest; return their bytes."""
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


def test_estimate_for_an_empty_storage(root, corpus):
    usage = disk_usage.estimate_usage(experiment(root))
    assert usage.corpora == corpus
    assert usage.current == 0
    assert usage.notes == ()
    shards = next(part for part in usage.stages if part.stage == "prepare").final
    samples = np.random.default_rng(1).integers(-160, 160, size=round(CLIPS * SECONDS * 16_000)).astype(np.int16)
    assert len(encode_flac(samples)) < shards < 2 * samples.nbytes
    assert usage.required > usage.final
    assert (usage.free is None) == storage.is_remote(root)


def test_existing_files_are_measured(root, corpus):
    config = experiment(root, stages=["prepare", "teachers"])
    table = pa.table({"num_samples": [16_000] * 1000})
    storage.write_table(f"{config.folder}/prepare/manifest.parquet", table)
    storage.write_bytes(f"{config.folder}/prepare/shards/a.parquet", bytes(5_000_000))
    storage.write_bytes(f"{config.folder}/teachers/teacher-en/best-0001/model.safetensors", bytes(2_000))
    storage.write_bytes(f"{config.folder}/mine/notes.txt", bytes(10))
    usage = stages(config)
    assert set(usage) == {"prepare", "teachers", "other"}
    assert usage["prepare"].current == usage["prepare"].final > 5_000_000
    assert usage["teachers"].current == 2_000
    assert (usage["other"].contents, usage["other"].current) == ("mine", 10)
    assert usage["teachers"].final > 3 * 1000 * 4 * 4  # logits of three teachers on the manifest's utterances


@pytest.mark.parametrize("suffix", [".m4a", ".webm", ".amr"])
def test_recordings_that_need_ffmpeg_are_counted(tmp_path, monkeypatch, suffix):
    header = {".m4a": b"\0\0\0\x20ftypM4A ", ".webm": b"\x1aE\xdf\xa3", ".amr": b"#!AMR\n"}[suffix]
    for number in range(CLIPS):
        storage.write_bytes(f"{tmp_path}/corpus/{number}{suffix}", header + bytes(20_000))
    monkeypatch.setattr(shutil, "which", lambda program: None)
    usage = disk_usage.estimate_usage(experiment(str(tmp_path)))
    assert usage.corpora == CLIPS * (20_000 + len(header))
    assert next(part for part in usage.stages if part.stage == "prepare").final > usage.corpora  # FLAC is larger
    (note,) = usage.notes
    assert "need ffmpeg, which is not installed" in note


def test_damaged_recordings_have_no_duration(tmp_path):
    for number in range(CLIPS):
        storage.write_bytes(f"{tmp_path}/corpus/{number}.wav", bytes(20_000))
    usage = disk_usage.estimate_usage(experiment(str(tmp_path)))
    assert usage.corpora == CLIPS * 20_000
    assert next(part for part in usage.stages if part.stage == "prepare").final == CLIPS * 400  # manifest rows
    assert usage.notes == ()


def test_duration_of_a_container_is_that_of_the_decoded_recording(tmp_path, monkeypatch):
    monkeypatch.setattr(size_estimates, "decode_audio", lambda content, source_name: np.zeros(3 * 16_000))
    storage.write_bytes(f"{tmp_path}/a.m4a", b"\0\0\0\x20ftypM4A ")
    assert size_estimates._read_duration(f"{tmp_path}/a.m4a") == 3


def test_more_runs_need_more_space(tmp_path):
    few = stages(experiment(str(tmp_path)))
    many = stages(experiment(str(tmp_path), tune={"trials": 32}, distill={"setups": ["monolingual", "multilingual"]}))
    assert many["tune"].final == 2 * few["tune"].final
    assert many["distill"].final > few["distill"].final
    assert few["teachers"].final < few["teachers"].peak


def test_cached_features_are_part_of_prepare(root, corpus):
    frozen = {"model": {"pretrained": "not/here"}}
    recipes = {"teacher": frozen, "student": frozen}
    plain = stages(experiment(root, **recipes))["prepare"]
    cached = stages(experiment(root, **recipes, train={"cache_features": True}))["prepare"]
    assert cached.final > 2 * plain.final
    assert "features" in cached.contents
    assert "features" not in plain.contents


def test_stages_of_a_base_experiment_are_left_out(tmp_path):
    usage = disk_usage.estimate_usage(experiment(str(tmp_path), base_experiment="other"))
    assert {"prepare", "teachers"}.isdisjoint(part.stage for part in usage.stages)
    assert "teachers: the experiment uses those of other" in usage.notes


@pytest.mark.parametrize("frozen", [False, True])
def test_parameter_counts_are_those_of_the_built_model(tmp_path, frozen):
    network = tiny.model().network
    model = tiny.config()
    if frozen:
        network.freeze_feature_encoder()
        network.config.save_pretrained(tmp_path)
        model = ModelConfig(pretrained=str(tmp_path))
    total = sum(parameter.numel() for parameter in network.parameters())
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    counts = size_estimates.count_parameters(model, notes := [])
    head = 0 if frozen else 2 * (16 + 1)  # an architecture without weights has two classes by default, not four
    assert [total - counts[0], trained - counts[1]] == [head, head]
    assert notes == []
    assert (trained < total) == frozen


@pytest.mark.parametrize("changes", [{}, {"num_layers": 1}, {"freeze_encoder": True}], ids=str)
@pytest.mark.parametrize("shape", [tiny.ARCHITECTURE, tiny.WHISPER], ids=["wav2vec2", "whisper"])
def test_parameter_counts_of_every_family_with_pruning_and_freezing(tmp_path, shape, changes):
    start = build_model(ModelConfig(config=shape, freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0).network
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "start"), start, tiny.card(), scratch=tmp_path / "scratch")
    model = ModelConfig(pretrained=str(tmp_path / "start"), **changes)
    built = list(build_model(model, PAPER_EMOTIONS, seed=0).parameters())
    trained = sum(parameter.numel() for parameter in built if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in built)
    assert size_estimates.count_parameters(model, []) == (total, trained)


def test_a_checkpoint_is_not_larger_than_estimated(tmp_path):
    tiny.checkpoint(tmp_path)
    size = sum(info.size for info in storage.list_files(str(tmp_path / "tiny")))
    estimate = size_estimates.estimate_checkpoint_size(tiny.config(), experiment(str(tmp_path)), [])
    assert size < estimate.checkpoint < size + 2_000_000


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
def test_resume_state_has_the_measured_size(tmp_path, zero_stage, precision, per_parameter):
    """DeepSpeed 0.19 saves this number of bytes per parameter, measured with a model of 470,212 parameters."""
    config = experiment(str(tmp_path), train={"zero_stage": zero_stage, "precision": precision})
    parameters, _ = size_estimates.count_parameters(tiny.config(), [])
    size = size_estimates.estimate_checkpoint_size(tiny.config(), config, [])
    assert size.resume - size.checkpoint == parameters * (per_parameter - 4)  # a checkpoint has 4 per parameter


def test_an_unknown_model_counts_as_base_size_with_a_note(tmp_path):
    notes: list[str] = []
    assert size_estimates.count_parameters(ModelConfig(pretrained="unknown/model"), notes)[0] > 90_000_000
    assert "unknown/model is not on this machine" in notes[0]
    with pytest.raises(ConfigError, match="transformers rejects"):
        size_estimates.count_parameters(ModelConfig(config={"model_type": "nothing"}, freeze_feature_encoder=False), [])


def test_command_prints_a_table_or_json(tmp_path, capsys, monkeypatch):
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(content(str(tmp_path))))
    assert main(["disk-usage", str(tmp_path / "e.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "no recordings in" in printed
    assert ": enough" in printed
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 1000)
    assert main(["disk-usage", str(tmp_path / "e.yaml")]) == 0
    assert "NOT ENOUGH" in capsys.readouterr().out
    assert main(["disk-usage", str(tmp_path / "e.yaml"), "--json"]) == 0
    usage = json.loads(capsys.readouterr().out)
    assert usage["free"] == 1000
    assert usage["total"]["final"] == sum(part["final"] for part in usage["stages"])
