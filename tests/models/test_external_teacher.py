"""Test mapping the classes of external teachers, and rejecting unusable ones."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models as tiny
from transformers import AutoConfig, AutoModelForAudioClassification

from lakd_ray.config import ExternalTeacherConfig
from lakd_ray.errors import ConfigError
from lakd_ray.inference.predictor import Predictor
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import load_checkpoint, pad_batch, save_checkpoint
from lakd_ray.models.external_teacher import ClassMapping, is_lakd_checkpoint, load_external_teacher

CLASSES = ("sad", "joy", "excited", "angry", "fear")  # no neutral
EMOTION_MAP = {"joy": "happiness", "excited": "happiness"}  # sad and angry are known adjectives


@pytest.fixture
def external_model(tmp_path: Path) -> str:
    """Write a transformers folder with other classes and without the metadata of this project."""
    torch.manual_seed(3)
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: index for index, name in enumerate(CLASSES)}}
    config = AutoConfig.for_model(**tiny.ARCHITECTURE, num_labels=len(CLASSES), **labels)
    AutoModelForAudioClassification.from_config(config).save_pretrained(tmp_path / "theirs")
    return str(tmp_path / "theirs")


def test_probabilities_of_merged_classes_add_up_and_unmapped_ones_are_distributed():
    logits_BE = torch.tensor([[1.0, 2.0, 0.5, -1.0, 3.0]])
    mapped = ClassMapping([[3], [1, 2], [], [0]])(logits_BE).softmax(dim=-1)[0]
    source = logits_BE.softmax(dim=-1)[0]
    total = float(source[:4].sum())
    assert float(mapped[0]) == pytest.approx(float(source[3]) / total, rel=1e-3)
    assert float(mapped[1]) == pytest.approx(float(source[1] + source[2]) / total, rel=1e-3)
    assert mapped[2] < 1e-4 and torch.isfinite(mapped).all()
    assert float(mapped.sum()) == pytest.approx(1)


def test_a_teacher_without_the_weights_of_its_head_is_rejected(external_model: str):
    """Several published emotion models have a head of their own under the names of transformers' classes."""
    weights = load_file(f"{external_model}/model.safetensors")
    renamed = {name.replace("classifier.", "classifier.output."): tensor for name, tensor in weights.items()}
    save_file(renamed, f"{external_model}/model.safetensors", metadata={"format": "pt"})
    spec = ExternalTeacherConfig(name="theirs", checkpoint=external_model, emotion_map=EMOTION_MAP)
    with pytest.raises(ConfigError, match=r"theirs: .* has no weights classifier.bias, classifier.weight, so its"):
        load_external_teacher(spec, PAPER_EMOTIONS)


def test_a_teacher_with_other_classes_is_mapped(external_model: str):
    spec = ExternalTeacherConfig(name="theirs", checkpoint=external_model, emotion_map=EMOTION_MAP)
    assert not is_lakd_checkpoint(spec)
    model = load_external_teacher(spec, PAPER_EMOTIONS)
    stock = AutoModelForAudioClassification.from_pretrained(external_model).eval()
    clip = 0.1 * torch.randn(6_000, generator=torch.Generator().manual_seed(1))
    normalized = (clip - clip.mean()) / clip.std(correction=0)
    with torch.inference_mode():
        probabilities = model(*pad_batch([clip])).logits_BC[0].softmax(dim=-1)
        source = stock(normalized[None]).logits[0].softmax(dim=-1)
    assert float(probabilities[0] / probabilities[3]) == pytest.approx(float(source[3] / source[0]), rel=1e-3)
    assert float(probabilities[1] / probabilities[3]) == pytest.approx(
        float((source[1] + source[2]) / source[0]), rel=1e-3
    )
    assert Predictor.load(spec, emotions=PAPER_EMOTIONS).logits([clip.numpy()]).shape == (1, 4)


def test_a_checkpoint_of_this_project_can_be_an_external_teacher(tmp_path: Path):
    location = tiny.checkpoint(tmp_path)
    spec = ExternalTeacherConfig(name="own", checkpoint=location)
    assert is_lakd_checkpoint(spec)
    wave = pad_batch([0.1 * torch.randn(6_000)])
    with torch.inference_mode():
        torch.testing.assert_close(
            load_external_teacher(spec, PAPER_EMOTIONS)(*wave).logits_BC, load_checkpoint(location)[0](*wave).logits_BC
        )


def test_a_language_aware_student_can_be_an_external_teacher_in_any_order(tmp_path: Path):
    model = tiny.aware().eval()
    save_checkpoint(str(tmp_path / "saved"), model.network, tiny.card(tiny.LANGUAGES), scratch=tmp_path)
    wave = pad_batch([0.1 * torch.randn(6_000)])
    teacher = load_external_teacher(
        ExternalTeacherConfig(name="own", checkpoint=str(tmp_path / "saved")), PAPER_EMOTIONS[::-1]
    )
    assert teacher.emotions == PAPER_EMOTIONS[::-1]
    with torch.inference_mode():
        torch.testing.assert_close(teacher(*wave).logits_BC, model(*wave).logits_BC.flip(-1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"emotion_map": {"sad": "other", "angry": "other"}},
            "external teacher theirs has the classes sad, joy, excited, angry, fear; expected some of anger, happiness",
        ),
        ({"emotion_map": {"sadly": "sadness"}}, "`emotion_map` maps sadly"),
        ({"checkpoint": "/missing"}, "cannot load teacher theirs from /missing"),
    ],
)
def test_unusable_teachers_are_rejected(external_model: str, changes: dict[str, object], message: str):
    spec = ExternalTeacherConfig.model_validate({"name": "theirs", "checkpoint": external_model} | changes)
    with pytest.raises(ConfigError, match=message):
        load_external_teacher(spec, PAPER_EMOTIONS)
