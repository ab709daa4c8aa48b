"""Test what is known about the training data of models from outside the experiment."""

import json
from pathlib import Path

import pytest
from support import tiny_models as tiny

from lakd_ray.config import IMPORTER_NAMES
from lakd_ray.data.provenance import DataExposure, Provenance
from lakd_ray.models.checkpoint import METADATA_FILE, CheckpointMetadata
from lakd_ray.models.known_pretrained import KNOWN_MODELS, known_provenance
from lakd_ray.models.origin import ORIGIN_FILE, read_origin, write_origin

EMOTIONAL_DATASETS_WITHOUT_IMPORTER = {"aesdd"}


def test_datasets_of_emotional_speech_have_the_names_of_their_importers() -> None:
    labeled = {name.partition(":")[0] for model in KNOWN_MODELS.values() for name in model.labeled}
    assert labeled - EMOTIONAL_DATASETS_WITHOUT_IMPORTER <= set(IMPORTER_NAMES)


def test_models_of_the_hub_are_known_by_name() -> None:
    assert read_origin("facebook/wav2vec2-base") == Provenance(DataExposure(datasets=frozenset({"librispeech"})))
    emotional = read_origin("superb/hubert-large-superb-er").trained_on.datasets
    assert {"iemocap:Ses02F", "iemocap:Ses05M", "libri-light"} <= emotional and "iemocap:Ses01F" not in emotional
    assert read_origin("openai/whisper-base").undisclosed_models == {"openai/whisper-base"}
    assert read_origin("someone/something") == Provenance(undisclosed_models=frozenset({"someone/something"}))
    assert read_origin("someone/something", name="theirs").undisclosed_models == {"theirs"}


def test_a_folder_adds_the_data_of_its_base_model_and_remains_unknown(tmp_path: Path) -> None:
    folder = tmp_path / "fine-tuned"
    folder.mkdir()
    unknown = Provenance(undisclosed_models=frozenset({"fine-tuned"}))
    assert read_origin(str(folder)) == unknown
    base = "superb/wav2vec2-base-superb-er"
    (folder / "config.json").write_text(json.dumps({"_name_or_path": base}))
    assert read_origin(str(folder)) == unknown.inherit([known_provenance(base) or Provenance()])


@pytest.mark.parametrize("spelling", ["Superb/Wav2Vec2-Base-Superb-ER", "superb/wav2vec2-base-superb-er/"])
def test_the_hub_ignores_case(spelling: str) -> None:
    assert read_origin(spelling) == known_provenance("superb/wav2vec2-base-superb-er")
    assert read_origin("OpenAI/whisper-tiny").undisclosed_models == {"openai/whisper-tiny"}


def test_copies_of_known_models_have_their_data(tmp_path: Path) -> None:
    base = known_provenance("superb/wav2vec2-base-superb-er") or Provenance()
    snapshot = tmp_path / "hub/models--superb--wav2vec2-base-superb-er/snapshots/0a1b"
    unlisted = tmp_path / "hub/models--someone--something/snapshots/0a1b"
    clone, renamed = tmp_path / "wav2vec2-base-superb-er", tmp_path / "mine"
    for folder in (snapshot, unlisted, clone, renamed):
        folder.mkdir(parents=True)
    assert read_origin(str(snapshot)) == read_origin(f"{snapshot}/") == base
    assert read_origin(str(unlisted)).undisclosed_models == {"someone/something"}
    assert read_origin(str(clone)) == base.inherit([Provenance(undisclosed_models=frozenset({clone.name}))])
    (renamed / "config.json").write_text(json.dumps({"_name_or_path": str(snapshot)}))
    assert read_origin(str(renamed)) == base.inherit([Provenance(undisclosed_models=frozenset({"mine"}))])


@pytest.mark.parametrize("source", ["superb/wav2vec2-base-superb-er", "openai/whisper-tiny", "someone/something"])
def test_a_converted_model_has_the_record_of_its_source(tmp_path: Path, source: str) -> None:
    (tmp_path / "copy").mkdir()
    write_origin(tmp_path / "copy", source, "main")
    assert read_origin(str(tmp_path / "copy")) == read_origin(source)
    content = json.loads((tmp_path / "copy" / ORIGIN_FILE).read_text())
    assert (content["source"], content["revision"]) == (source, "main")


def test_a_private_path_is_not_recorded(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_origin(source, str(source), None)
    assert str(tmp_path) not in (source / ORIGIN_FILE).read_text()


def test_a_checkpoint_of_this_project_has_its_own_record(tmp_path: Path) -> None:
    location = tiny.checkpoint(tmp_path)
    assert read_origin(location) == tiny.card().provenance


@pytest.mark.parametrize(
    ("model", "undisclosed"),
    [
        ({"config": {"model_type": "wav2vec2"}}, set()),
        ({"pretrained": "facebook/wav2vec2-base", "config": None}, set()),
        ({"pretrained": "openai/whisper-base", "config": None}, {"openai/whisper-base"}),
        ({"pretrained": "/models/mine", "config": None}, {"test/tiny"}),
        ({}, {"test/tiny"}),
    ],
)
def test_records_of_version_0_1_are_read(model: dict[str, object], undisclosed: set[str]) -> None:
    content = json.loads(json.dumps(tiny.card().to_json()))
    old = {
        name: {key: seen[key] for key in ("speakers", "audio")} for name, seen in content["provenance"].items() if seen
    }
    content |= {
        "provenance": old | {"undisclosed_teachers": ["theirs"]},
        "training": {"run": {"recipe": {"model": model}}},
    }
    read = CheckpointMetadata.from_json(content).provenance
    assert read.undisclosed_models == undisclosed | {"theirs"}
    assert read.trained_on.speakers == tiny.card().provenance.trained_on.speakers
    assert METADATA_FILE == "lakd.json"


def test_a_release_in_the_cache_of_the_hub_has_its_own_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = tiny.checkpoint(tmp_path)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda name, file, revision: str(Path(location, file)) if (name, revision) == ("mine/release", "v1") else None,
    )
    assert read_origin("mine/release", "v1") == tiny.card().provenance
    assert read_origin("mine/release").undisclosed_models == {"mine/release"}
