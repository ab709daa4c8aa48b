"""Checkpoints: what is saved is what is loaded, or nothing is."""

import json
from pathlib import Path

import pytest
import torch
from support import tiny_models as tiny
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from lakd_ray import storage
from lakd_ray.config import ModelConfig
from lakd_ray.errors import CheckpointError, ConfigError, StorageError
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import EmotionClassifier, build_model, load_checkpoint, pad_batch, save_checkpoint
from lakd_ray.models.checkpoint import METADATA_FILE, read_metadata


@pytest.fixture
def place(tmp_path: Path) -> str:
    return tiny.checkpoint(tmp_path)


def logits(model: EmotionClassifier) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return model.eval()(
            *pad_batch([torch.randn(length, generator=generator) for length in (4_000, 7_000)])
        ).logits_BC


def weights(model: EmotionClassifier) -> dict[str, torch.Tensor]:
    return model.network.state_dict()


def equal(one: EmotionClassifier, other: EmotionClassifier) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_round_trip_is_exact(place):
    model, card = load_checkpoint(place)
    assert not model.training
    assert torch.equal(logits(model), logits(tiny.model()))
    assert card == tiny.card()
    assert read_metadata(place) == card


def test_given_weights_are_saved_instead_of_the_networks_own(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    given = tiny.model(seed=9)
    save_checkpoint(
        str(tmp_path / "c"), tiny.model(seed=1).network, tiny.card(), scratch=scratch, state_dict=dict(weights(given))
    )
    assert equal(load_checkpoint(str(tmp_path / "c"))[0], given)


def test_transformers_loads_it_alone(place):
    network = AutoModelForAudioClassification.from_pretrained(place).eval()
    assert tuple(network.config.id2label.values()) == PAPER_EMOTIONS
    assert network.config.label2id["sadness"] == 3
    clip = torch.randn(1, 6_000)
    with torch.inference_mode():
        torch.testing.assert_close(
            network(clip).logits, load_checkpoint(place)[0](clip, torch.tensor([6_000])).logits_BC, atol=1e-5, rtol=0
        )
    extractor = AutoFeatureExtractor.from_pretrained(place)
    assert (extractor.sampling_rate, extractor.do_normalize, extractor.return_attention_mask) == (16_000, True, True)


def test_nothing_in_it_is_a_pickle(place):
    names = {info.name for info in storage.list_files(place)}
    assert names == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        METADATA_FILE,
        storage.CHECKSUMS_FILE,
    }


def spoil(file: Path, how: str) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[:-100])
    elif how == "one bit":
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.write_bytes(b"")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", METADATA_FILE])
@pytest.mark.parametrize("how", ["missing", "truncated", "one bit", "empty"])
def test_a_damaged_file_is_refused(place, name, how):
    spoil(Path(place, name), how)
    with pytest.raises(StorageError, match=rf"damaged.*{name}|{name} is damaged"):
        load_checkpoint(place)


def test_a_folder_that_was_never_finished_is_refused(place):
    Path(place, storage.CHECKSUMS_FILE).unlink()
    with pytest.raises(StorageError, match="not a complete folder"):
        load_checkpoint(place)
    with pytest.raises(StorageError, match="not a complete folder"):
        load_checkpoint(f"{place}-nowhere")


def test_a_sealed_folder_of_others_is_refused(place, tmp_path):
    Path(place, METADATA_FILE).unlink()
    Path(place, storage.CHECKSUMS_FILE).unlink()
    storage.write_checksummed_folder(Path(place), str(tmp_path / "theirs"))
    with pytest.raises(CheckpointError, match=f"has no {METADATA_FILE}"):
        load_checkpoint(str(tmp_path / "theirs"))
    with pytest.raises(StorageError, match=METADATA_FILE):
        read_metadata(str(tmp_path / "theirs"))


def test_card_and_outputs_must_agree(place):
    card = json.loads(Path(place, METADATA_FILE).read_text())
    Path(place, METADATA_FILE).write_text(json.dumps(card | {"emotions": card["emotions"][:3]}))
    storage.write_checksummed_folder(Path(place), f"{place}-other")
    with pytest.raises(CheckpointError, match=r"has 4 outputs, but lakd\.json lists 3 emotions"):
        load_checkpoint(f"{place}-other")


def test_a_random_start_depends_on_the_seed_alone():
    torch.manual_seed(123)
    one = tiny.model(seed=5)
    torch.rand(17)
    assert equal(one, tiny.model(seed=5))
    assert not equal(one, tiny.model(seed=6))


def test_layers_are_never_dropped():
    assert tiny.model(layerdrop=0.5).network.config.layerdrop == 0.0


def test_frozen_feature_encoder_is_frozen_and_nothing_else(place):
    model = build_model(ModelConfig(pretrained=place, freeze_feature_encoder=True), PAPER_EMOTIONS, seed=0)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    encoder = {name for name, _ in model.named_parameters() if ".feature_extractor." in name}
    assert frozen == encoder != set()
    model = build_model(ModelConfig(pretrained=place, freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_pretrained_encoder_gets_a_head_from_the_seed(tmp_path):
    tiny.model(seed=3).network.wav2vec2.save_pretrained(tmp_path)
    source = ModelConfig(pretrained=str(tmp_path), freeze_feature_encoder=True)
    one, other = (build_model(source, PAPER_EMOTIONS, seed=seed) for seed in (0, 1))
    assert equal(one, build_model(source, PAPER_EMOTIONS, seed=0))
    differ = {name for name, value in weights(one).items() if not torch.equal(value, weights(other)[name])}
    assert differ == {"projector.weight", "classifier.weight"} | {
        name for name in ("projector.bias", "classifier.bias") if name in differ
    }


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "nothing-known"},
        {"model_type": "bert"},  # has no audio classifier
        {"conv_dim": [16, 16]},  # three kernels
        {"hidden_size": 33},  # two heads
        {"hidden_act": "no-such-function"},
        {"model_type": "wav2vec2-bert"},  # has an audio classifier, of another layout
    ],
)
def test_an_impossible_architecture_is_refused(change):
    with pytest.raises(ConfigError, match=r"model.config|model_type"):
        tiny.model(**change)


def test_a_missing_pretrained_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot load `model"):
        build_model(ModelConfig(pretrained=str(tmp_path)), PAPER_EMOTIONS, seed=0)


def test_a_damaged_pretrained_model_is_refused(place):
    spoil(Path(place, "model.safetensors"), "truncated")
    with pytest.raises(ConfigError, match="cannot load `model"):
        build_model(ModelConfig(pretrained=place), PAPER_EMOTIONS, seed=0)


def test_a_pretrained_classifier_of_other_emotions_gets_a_new_head_or_is_refused(place):
    try:
        model = build_model(ModelConfig(pretrained=place), PAPER_EMOTIONS[:3], seed=0)
    except ConfigError as error:
        assert "cannot load `model.pretrained" in str(error)
    else:
        assert logits(model).shape == (2, 3)
