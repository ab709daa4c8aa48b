"""Teachers from elsewhere: their classes, and what is refused."""

from pathlib import Path

import pytest
import torch
from support import tiny_models as tiny
from transformers import AutoConfig, AutoModelForAudioClassification

from lakd_ray.config import ExternalTeacherConfig
from lakd_ray.errors import ConfigError
from lakd_ray.inference.predictor import Predictor
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import load_checkpoint, pad_batch
from lakd_ray.models.external_teacher import ClassMapping, is_lakd_checkpoint, load_external_teacher

THEIRS = ("sad", "joy", "excited", "angry", "fear")  # no neutral
RENAMED = {"sad": "sadness", "joy": "happiness", "excited": "happiness", "angry": "anger"}


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    """A transformers folder with other classes, without a card of this project."""
    torch.manual_seed(3)
    labels = {"id2label": dict(enumerate(THEIRS)), "label2id": {name: place for place, name in enumerate(THEIRS)}}
    config = AutoConfig.for_model(**tiny.ARCHITECTURE, num_labels=len(THEIRS), **labels)
    AutoModelForAudioClassification.from_config(config).save_pretrained(tmp_path / "theirs")
    return str(tmp_path / "theirs")


def test_probabilities_of_shared_classes_add_up_and_are_shared_out():
    logits_BE = torch.tensor([[1.0, 2.0, 0.5, -1.0, 3.0]])
    found = ClassMapping([[3], [1, 2], [], [0]])(logits_BE).softmax(dim=-1)[0]
    theirs = logits_BE.softmax(dim=-1)[0]
    shared = float(theirs[:4].sum())
    assert float(found[0]) == pytest.approx(float(theirs[3]) / shared, rel=1e-3)
    assert float(found[1]) == pytest.approx(float(theirs[1] + theirs[2]) / shared, rel=1e-3)
    assert found[2] < 1e-4 and torch.isfinite(found).all()
    assert float(found.sum()) == pytest.approx(1)


def test_a_teacher_of_other_classes(elsewhere: str):
    spec = ExternalTeacherConfig(name="theirs", checkpoint=elsewhere, emotion_map=RENAMED)
    assert not is_lakd_checkpoint(spec)
    model = load_external_teacher(spec, PAPER_EMOTIONS)
    stock = AutoModelForAudioClassification.from_pretrained(elsewhere).eval()
    clip = 0.1 * torch.randn(6_000, generator=torch.Generator().manual_seed(1))
    normalised = (clip - clip.mean()) / clip.std(correction=0)
    with torch.inference_mode():
        found = model(*pad_batch([clip])).logits_BC[0].softmax(dim=-1)
        theirs = stock(normalised[None]).logits[0].softmax(dim=-1)
    assert float(found[0] / found[3]) == pytest.approx(float(theirs[3] / theirs[0]), rel=1e-3)
    assert float(found[1] / found[3]) == pytest.approx(float((theirs[1] + theirs[2]) / theirs[0]), rel=1e-3)
    assert Predictor.load(spec, emotions=PAPER_EMOTIONS).logits([clip.numpy()]).shape == (1, 4)


def test_a_checkpoint_of_this_project(tmp_path: Path):
    place = tiny.checkpoint(tmp_path)
    spec = ExternalTeacherConfig(name="own", checkpoint=place)
    assert is_lakd_checkpoint(spec)
    wave = pad_batch([0.1 * torch.randn(6_000)])
    with torch.inference_mode():
        torch.testing.assert_close(
            load_external_teacher(spec, PAPER_EMOTIONS)(*wave).logits_BC, load_checkpoint(place)[0](*wave).logits_BC
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "teacher theirs has the classes sad, joy, excited, angry, fear; none is one of anger, happiness"),
        ({"emotion_map": {"sadly": "sadness"}}, "`emotion_map` renames sadly"),
        ({"checkpoint": "/nowhere"}, "cannot load teacher theirs from /nowhere"),
    ],
)
def test_refused(elsewhere: str, changes: dict[str, object], message: str):
    spec = ExternalTeacherConfig.model_validate({"name": "theirs", "checkpoint": elsewhere} | changes)
    with pytest.raises(ConfigError, match=message):
        load_external_teacher(spec, PAPER_EMOTIONS)
