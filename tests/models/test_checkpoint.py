"""Test that a loaded checkpoint equals the saved one, and that corrupted ones are rejected."""

import json
from pathlib import Path

import pytest
import torch
from support import tiny_models as tiny
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification
from transformers.utils import logging as transformers_logging

from lakd_ray import storage
from lakd_ray.config import ModelConfig
from lakd_ray.errors import CheckpointError, ConfigError, StorageError
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import EmotionClassifier, build_model, load_checkpoint, pad_batch, save_checkpoint
from lakd_ray.models.checkpoint import METADATA_FILE, read_metadata


@pytest.fixture
def location(tmp_path: Path) -> str:
    return tiny.checkpoint(tmp_path)


def logits(model: EmotionClassifier) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return model.eval()(
            *pad_batch([torch.randn(length, generator=generator) for length in (4_000, 7_000)])
        ).logits_BC


def weights(model: EmotionClassifier) -> dict[str, torch.Tensor]:
    return model.network.state_dict()


def equal(model: EmotionClassifier, other: EmotionClassifier) -> bool:
    values, others = weights(model), weights(other)
    return values.keys() == others.keys() and all(torch.equal(values[name], others[name]) for name in values)


def test_round_trip_is_exact(location):
    model, metadata = load_checkpoint(location)
    assert not model.training
    assert torch.equal(logits(model), logits(tiny.model()))
    assert metadata == tiny.card()
    assert read_metadata(location) == metadata


def test_a_given_state_dict_is_saved_instead_of_the_networks_own(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    source = tiny.model(seed=9)
    save_checkpoint(
        str(tmp_path / "c"), tiny.model(seed=1).network, tiny.card(), scratch=scratch, state_dict=dict(weights(source))
    )
    assert equal(load_checkpoint(str(tmp_path / "c"))[0], source)


def test_transformers_loads_a_checkpoint_without_this_project(location):
    network = AutoModelForAudioClassification.from_pretrained(location).eval()
    assert tuple(network.config.id2label.values()) == PAPER_EMOTIONS
    assert network.config.label2id["sadness"] == 3
    clip = torch.randn(1, 6_000)
    with torch.inference_mode():
        torch.testing.assert_close(
            network(clip).logits, load_checkpoint(location)[0](clip, torch.tensor([6_000])).logits_BC, atol=1e-5, rtol=0
        )
    extractor = AutoFeatureExtractor.from_pretrained(location)
    assert (extractor.sampling_rate, extractor.do_normalize, extractor.return_attention_mask) == (16_000, True, True)


def test_a_checkpoint_contains_no_pickle(location):
    names = {info.name for info in storage.list_files(location)}
    assert names == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        METADATA_FILE,
        storage.CHECKSUMS_FILE,
    }


def corrupt(file: Path, damage: str) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[:-100])
    elif damage == "one bit":
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.write_bytes(b"")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", METADATA_FILE])
@pytest.mark.parametrize("damage", ["missing", "truncated", "one bit", "empty"])
def test_a_corrupted_file_is_rejected(location, name, damage):
    corrupt(Path(location, name), damage)
    with pytest.raises(StorageError, match=rf"damaged.*{name}|{name} is damaged"):
        load_checkpoint(location)


def test_an_unfinished_folder_is_rejected(location):
    Path(location, storage.CHECKSUMS_FILE).unlink()
    with pytest.raises(StorageError, match="not a complete folder"):
        load_checkpoint(location)
    with pytest.raises(StorageError, match="not a complete folder"):
        load_checkpoint(f"{location}-missing")


def test_a_folder_without_metadata_is_rejected(location, tmp_path):
    Path(location, METADATA_FILE).unlink()
    Path(location, storage.CHECKSUMS_FILE).unlink()
    storage.write_checksummed_folder(Path(location), str(tmp_path / "other"))
    with pytest.raises(CheckpointError, match=f"has no {METADATA_FILE}"):
        load_checkpoint(str(tmp_path / "other"))
    with pytest.raises(StorageError, match=METADATA_FILE):
        read_metadata(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("emotions", "listed"),
    [
        (PAPER_EMOTIONS[:3], "3 emotions, anger, happiness, neutral:"),
        (PAPER_EMOTIONS[::-1], "4 emotions, sadness, neutral, happiness, anger:"),
        (("fear", *PAPER_EMOTIONS[1:]), "4 emotions, fear, happiness, neutral, sadness:"),
    ],
)
def test_metadata_and_network_must_name_the_same_classes_in_one_order(location, emotions, listed):
    metadata = json.loads(Path(location, METADATA_FILE).read_text())
    Path(location, METADATA_FILE).write_text(json.dumps(metadata | {"emotions": emotions}))
    storage.write_checksummed_folder(Path(location), f"{location}-other")
    message = f"has the 4 outputs anger, happiness, neutral, sadness, but {METADATA_FILE} lists {listed}"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(f"{location}-other")


def test_random_weights_depend_only_on_the_seed():
    torch.manual_seed(123)
    model = tiny.model(seed=5)
    torch.rand(17)
    assert equal(model, tiny.model(seed=5))
    assert not equal(model, tiny.model(seed=6))


def test_layerdrop_is_turned_off():
    assert tiny.model(layerdrop=0.5).network.config.layerdrop == 0.0


def test_only_the_feature_encoder_is_frozen(location):
    model = build_model(ModelConfig(pretrained=location, freeze_feature_encoder=True), PAPER_EMOTIONS, seed=0)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    encoder = {name for name, _ in model.named_parameters() if ".feature_extractor." in name}
    assert frozen == encoder != set()
    model = build_model(ModelConfig(pretrained=location, freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_new_head_of_a_pretrained_encoder_depends_on_the_seed(tmp_path):
    tiny.model(seed=3).network.wav2vec2.save_pretrained(tmp_path)
    source = ModelConfig(pretrained=str(tmp_path), freeze_feature_encoder=True)
    model, other = (build_model(source, PAPER_EMOTIONS, seed=seed) for seed in (0, 1))
    assert equal(model, build_model(source, PAPER_EMOTIONS, seed=0))
    differ = {name for name, value in weights(model).items() if not torch.equal(value, weights(other)[name])}
    assert differ == {"projector.weight", "classifier.weight"} | {
        name for name in ("projector.bias", "classifier.bias") if name in differ
    }


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "nothing-known"},
        {"model_type": "bert"},  # no audio classifier
        {"conv_dim": [16, 16]},  # for three kernels
        {"hidden_size": 33},  # for two heads
        {"hidden_act": "no-such-function"},
        {"model_type": "wav2vec2-bert"},  # an audio classifier of an unsupported layout
    ],
)
def test_an_invalid_architecture_is_rejected(change):
    with pytest.raises(ConfigError, match=r"model.config|model_type"):
        tiny.model(**change)


def test_a_missing_pretrained_model_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="cannot load `model"):
        build_model(ModelConfig(pretrained=str(tmp_path)), PAPER_EMOTIONS, seed=0)


def test_a_corrupted_pretrained_model_is_rejected(location):
    corrupt(Path(location, "model.safetensors"), "truncated")
    with pytest.raises(ConfigError, match="cannot load `model"):
        build_model(ModelConfig(pretrained=location), PAPER_EMOTIONS, seed=0)


def test_a_pretrained_classifier_of_other_emotions_gets_a_new_head_or_is_rejected(location):
    try:
        model = build_model(ModelConfig(pretrained=location), PAPER_EMOTIONS[:3], seed=0)
    except ConfigError as error:
        assert "cannot load `model.pretrained" in str(error)
    else:
        assert logits(model).shape == (2, 3)


def test_loading_and_saving_show_no_progress_bar(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)
    load_checkpoint(tiny.checkpoint(tmp_path))
    assert capfd.readouterr().err == ""
    assert list(transformers_logging.tqdm([1, 2], desc="a bar")) == [1, 2]
    assert "a bar" in capfd.readouterr().err  # bars outside of these functions are unchanged
