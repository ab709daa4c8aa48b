"""A pretrained classifier's final layer is matched to the experiment's classes by name, whatever its order."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models as tiny
from transformers import AutoConfig, AutoModelForAudioClassification

from lakd_ray.config import LanguageAwareHeadConfig, ModelConfig
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import EmotionClassifier, build_model, pad_batch

ABBREVIATIONS = {"anger": "ang", "happiness": "hap", "neutral": "neu", "sadness": "sad"}


def write_classifier(folder: Path, labels: tuple[str, ...]) -> str:
    """Write a classifier of transformers whose row of a class depends on the name of the class alone."""
    torch.manual_seed(3)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    network = AutoModelForAudioClassification.from_config(
        AutoConfig.for_model(**tiny.ARCHITECTURE, num_labels=len(labels), **names)
    )
    with torch.no_grad():
        for index, label in enumerate(labels):
            network.classifier.weight[index], network.classifier.bias[index] = row_of(label), float(len(label))
    network.save_pretrained(folder)
    return str(folder)


def row_of(label: str) -> torch.Tensor:
    return torch.randn(16, generator=torch.Generator().manual_seed(sum(map(ord, label[:3].lower()))))


def start_from(location: str, emotions: tuple[str, ...] = PAPER_EMOTIONS, *, seed: int = 0) -> EmotionClassifier:
    source = ModelConfig(pretrained=location, freeze_feature_encoder=False)
    return build_model(source, emotions, seed=seed).eval()


def test_permuted_labels_of_a_pretrained_head_give_the_same_logits_by_name(tmp_path: Path):
    wave = pad_batch([0.1 * torch.randn(6_000, generator=torch.Generator().manual_seed(1))])
    expected = None
    for number, order in enumerate(itertools.islice(itertools.permutations(PAPER_EMOTIONS), 0, 24, 5)):
        labels = tuple(ABBREVIATIONS[emotion].upper() if number % 2 else emotion for emotion in order)
        model = start_from(write_classifier(tmp_path / str(number), labels))
        head = model.network.classifier
        assert all(torch.equal(head.weight[i], row_of(emotion)) for i, emotion in enumerate(PAPER_EMOTIONS))
        assert model.emotions == PAPER_EMOTIONS
        with torch.inference_mode():
            logits = model(*wave).logits_BC - head.bias
        expected = logits if expected is None else expected
        torch.testing.assert_close(logits, expected)


def test_known_classes_are_used_and_others_are_new(tmp_path: Path):
    location = write_classifier(tmp_path, ("Sad", "joy", "angry", "fear", "neutral"))
    model, other = (start_from(location, seed=seed) for seed in (0, 1))
    head, other_head = model.network.classifier, other.network.classifier
    for index, name in ((0, "angry"), (2, "neutral"), (3, "Sad")):
        assert torch.equal(head.weight[index], row_of(name)) and torch.equal(other_head.weight[index], row_of(name))
        assert head.bias[index] == len(name)
    assert not torch.equal(head.weight[1], row_of("joy")) and not torch.equal(head.weight[1], other_head.weight[1])
    assert torch.equal(head.weight, start_from(location).network.classifier.weight)
    assert model.pretrained_head_note == (
        "the pretrained model has the classes Sad, joy, angry, fear, neutral: the final layer starts from its weights "
        "for anger (angry), neutral, sadness (Sad), and is new for happiness"
    )


@pytest.mark.parametrize("labels", [("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"), ("yes", "no", "up", "down", "left")])
def test_a_head_of_unknown_classes_is_new(tmp_path: Path, labels: tuple[str, ...]):
    location = write_classifier(tmp_path, labels)
    model, other = (start_from(location, seed=seed) for seed in (0, 1))
    assert not torch.equal(model.network.classifier.weight, other.network.classifier.weight)
    assert model.network.classifier.weight.std() < 0.05 < row_of(labels[0]).std()  # initialized as transformers does
    assert model.emotions == PAPER_EMOTIONS
    assert "none of them is anger, happiness, neutral, sadness, so" in str(model.pretrained_head_note)
    assert other.pretrained_head_note == model.pretrained_head_note


def test_an_encoder_with_labels_but_without_a_head_gets_a_new_one(tmp_path: Path):
    location = write_classifier(tmp_path, tuple(ABBREVIATIONS.values()))
    file = tmp_path / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if not name.startswith("classifier")}
    save_file(weights, file, metadata={"format": "pt"})
    model, other = (start_from(location, seed=seed) for seed in (0, 1))
    assert not torch.equal(model.network.classifier.weight, other.network.classifier.weight)
    assert model.pretrained_head_note is None and model.emotions == PAPER_EMOTIONS


def test_a_language_aware_student_takes_only_the_encoder(tmp_path: Path):
    location = write_classifier(tmp_path, ("sad", "neu", "hap", "ang"))
    source = ModelConfig(
        pretrained=location, freeze_feature_encoder=False, language_aware=LanguageAwareHeadConfig(projection_size=16)
    )
    model = build_model(source, PAPER_EMOTIONS, seed=0, languages=tiny.LANGUAGES)
    assert model.emotions == PAPER_EMOTIONS and model.pretrained_head_note is None
