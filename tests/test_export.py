"""Checkpoints for release."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForAudioClassification

from lakd_ray import cli, export, storage
from lakd_ray.config import LanguageAware, Model
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import build, load, save


def test_what_is_released_is_the_same_model_and_names_nobody(tmp_path: Path, capsys):
    place = tiny.checkpoint(tmp_path)
    assert cli.main(["export", place, str(tmp_path / "released")]) == 0
    assert "exported to" in capsys.readouterr().out
    text = (tmp_path / "released" / "lakd.json").read_text()
    assert "c:one" not in text and str(tmp_path) not in text
    (one, before), (other, after) = load(place), load(str(tmp_path / "released"))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert after.provenance.trained_on.meets(before.provenance.trained_on) == ["c:one", "1 identical recordings"]
    assert (after.emotions, after.languages, after.model_id) == (before.emotions, before.languages, before.model_id)
    AutoModelForAudioClassification.from_pretrained(tmp_path / "released")


@pytest.mark.parametrize("aware", [None, tiny.AWARE], ids=["plain", "language-aware"])
def test_no_file_tells_where_it_was_trained(tmp_path: Path, aware: LanguageAware | None):
    (tmp_path / "secret-place").mkdir()
    start = tiny.checkpoint(tmp_path / "secret-place")
    model = build(Model(pretrained=start, language_aware=aware), PAPER_EMOTIONS, seed=0, languages=tiny.LANGUAGES)
    model.network.config.backbone = {**getattr(model.network.config, "backbone", {}), "_name_or_path": start}
    (tmp_path / "scratch").mkdir()
    card = replace(tiny.card(), training={"run": {"recipe": {"model": {"pretrained": start}}}, "layers": [0, 2]})
    save(str(tmp_path / "trained"), model.network, card, scratch=tmp_path / "scratch")
    export.run(str(tmp_path / "trained"), str(tmp_path / "released"))
    told = [file.name for file in (tmp_path / "released").iterdir() if b"secret-place" in file.read_bytes()]
    assert told == []
    again, released = load(str(tmp_path / "released"))
    assert again.languages == model.languages and released.training["layers"] == [0, 2]


def test_two_releases_cannot_be_compared_by_their_hashes(tmp_path: Path):
    place = tiny.checkpoint(tmp_path)
    speakers = []
    for name in ("a", "b"):
        cli.main(["export", place, str(tmp_path / name)])
        speakers.append(
            set(json.loads((tmp_path / name / "lakd.json").read_text())["provenance"]["trained_on"]["speakers"])
        )
    assert not speakers[0] & speakers[1]


def test_nothing_is_overwritten_and_nothing_damaged_is_released(tmp_path: Path, capsys):
    place = tiny.checkpoint(tmp_path)
    assert cli.main(["export", place, place]) == 2
    assert "holds files already" in capsys.readouterr().err
    Path(place, "model.safetensors").write_bytes(b"x")
    assert cli.main(["export", place, str(tmp_path / "released")]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert not list(storage.list_files(str(tmp_path / "released")))


@pytest.mark.parametrize("missing", ["SEAL.json", "lakd.json"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, missing: str):
    place = tiny.checkpoint(tmp_path)
    Path(place, missing).unlink()
    assert cli.main(["export", place, str(tmp_path / "released")]) == 2
