"""The predictor: answers in the order of the questions, the same alone and together."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny_models as tiny

from lakd_ray.audio import Wave
from lakd_ray.config import ModelConfig
from lakd_ray.inference.predictor import Predictor, predict_with_models, softmax
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import build_model, pad_batch


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny.model(), tiny.card())


def waves(*seconds: float) -> list[Wave]:
    random = np.random.default_rng(4)
    return [random.standard_normal(round(16_000 * length)).astype(np.float32) for length in seconds]


def test_order_of_answers_is_the_order_of_waves(predictor):
    """Long and short alternate, and together they are more than one batch holds."""
    clips = waves(1.0, 25.0, 0.2, 26.0, 2.0, 24.0, 0.5)
    together = predictor.logits(clips)
    alone = np.concatenate([predictor.logits([clip]) for clip in clips])
    assert together.shape == (7, 4) and together.dtype == np.float32
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    assert len(np.unique(alone.round(4), axis=0)) == 7
    np.testing.assert_allclose(predictor.logits(clips[::-1]), together[::-1], rtol=0, atol=1e-5)


def test_probabilities_are_the_softmax_and_sum_to_one(predictor):
    clips = waves(0.3, 1.0, 0.7)
    found = predictor.probabilities(clips)
    logits = predictor.logits(clips).astype(np.float64)
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=1e-6)


def test_softmax_of_large_logits():
    found = softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], dtype=np.float32))
    np.testing.assert_array_equal(found, [[1, 0], [0.5, 0.5]])


def test_loudness_and_offset_do_not_matter(predictor):
    (clip,) = waves(1.0)
    np.testing.assert_allclose(predictor.logits([0.05 * clip + 0.1]), predictor.logits([clip]), rtol=0, atol=1e-3)


def test_silence_has_an_answer(predictor):
    assert np.isfinite(predictor.logits([np.zeros(16_000, np.float32), *waves(0.5)])).all()


def test_no_waves(predictor):
    assert predictor.logits([]).shape == (0, 4)
    assert predictor.probabilities([]).shape == (0, 4)


def test_dropout_is_off_and_nothing_is_remembered(predictor):
    clips = waves(1.0, 0.4)
    np.testing.assert_array_equal(predictor.logits(clips), predictor.logits(clips))


def test_a_checkpoint_answers_as_the_model_that_was_saved(predictor, tmp_path):
    loaded = Predictor.load(tiny.checkpoint(tmp_path))
    np.testing.assert_array_equal(loaded.logits(waves(1.0, 0.4)), predictor.logits(waves(1.0, 0.4)))
    assert (loaded.model_id, loaded.languages, loaded.emotions) == (
        "test/tiny", ("en", "de"), ("anger", "happiness", "neutral", "sadness"),
    )  # fmt: skip


def probe(folder: Path, seed: int) -> Predictor:
    """A frozen encoder that all probes share, with a head of its own."""
    source = ModelConfig(pretrained=str(folder), freeze_encoder=True)
    return Predictor(build_model(source, PAPER_EMOTIONS, seed=seed), tiny.card())


def test_what_models_have_in_common_is_computed_once_and_answers_are_their_own(tmp_path, monkeypatch):
    place = Path(tiny.checkpoint(tmp_path, seed=7))
    predictors = {"a": probe(place, 1), "b": probe(place, 2), "c": Predictor(tiny.model(seed=3), tiny.card())}
    predictors["b"].model.network.classifier.bias.data += torch.arange(4.0)
    clips = waves(1.0, 0.3, 0.6)
    alone = {name: one.logits(clips) for name, one in predictors.items()}
    calls = []
    for name, one in predictors.items():
        whole = one.model.extract_features
        monkeypatch.setattr(
            one.model, "extract_features", lambda *a, name=name, whole=whole: calls.append(name) or whole(*a)
        )
    together = predict_with_models(clips, {name: (one, None) for name, one in predictors.items()})
    assert calls == ["a", "c"]  # one batch: b's encoder is a's
    for name, expected in alone.items():
        np.testing.assert_allclose(together[name][0], expected, rtol=0, atol=1e-6)
        assert together[name][1] is None
    assert np.abs(alone["a"] - alone["b"]).max() > 1e-3


def test_a_language_aware_student_is_told_or_listens():
    predictor = Predictor(tiny.aware(), tiny.card(tiny.LANGUAGES))
    clips = waves(1.0, 0.3, 0.6)
    logits_BC, languages_BL = predictor.predict_logits(clips)
    assert languages_BL is not None and languages_BL.shape == (3, 3)
    heard = [predictor.identifiable_languages[place] for place in languages_BL.argmax(axis=1)]
    np.testing.assert_array_equal(predictor.logits(clips, heard), logits_BC)
    for index, clip in enumerate(clips):
        mixed = predictor.logits([clip, clips[0]], ["xx", None])
        np.testing.assert_allclose(mixed[0], predictor.logits([clip], ["xx"])[0], rtol=0, atol=1e-5)
        assert np.isfinite(logits_BC[index]).all()


def test_features_are_answered_as_the_waves_they_are_made_of(tmp_path):
    predictor = probe(Path(tiny.checkpoint(tmp_path)), 1)
    clips = waves(1.0, 0.3)
    with torch.inference_mode():
        made = [predictor.model.extract_features(*pad_batch([torch.from_numpy(clip)]))[0].numpy() for clip in clips]
    np.testing.assert_allclose(predictor.logits_from_features(made), predictor.logits(clips), rtol=0, atol=1e-5)
