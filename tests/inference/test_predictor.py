"""The predictor: logits in the order of the waves, the same alone and in any batch."""

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


def test_logits_are_in_the_order_of_the_waves(predictor):
    """Long and short waves alternate, and need more than one batch."""
    clips = waves(1.0, 25.0, 0.2, 26.0, 2.0, 24.0, 0.5)
    batched = predictor.logits(clips)
    alone = np.concatenate([predictor.logits([clip]) for clip in clips])
    assert batched.shape == (7, 4) and batched.dtype == np.float32
    np.testing.assert_allclose(batched, alone, rtol=0, atol=1e-5)
    assert len(np.unique(alone.round(4), axis=0)) == 7
    np.testing.assert_allclose(predictor.logits(clips[::-1]), batched[::-1], rtol=0, atol=1e-5)


def test_probabilities_are_the_softmax_and_sum_to_one(predictor):
    clips = waves(0.3, 1.0, 0.7)
    probabilities = predictor.probabilities(clips)
    logits = predictor.logits(clips).astype(np.float64)
    np.testing.assert_allclose(
        probabilities, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=0, atol=1e-6)


def test_softmax_of_large_logits():
    probabilities = softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], dtype=np.float32))
    np.testing.assert_array_equal(probabilities, [[1, 0], [0.5, 0.5]])


def test_loudness_and_offset_do_not_matter(predictor):
    (clip,) = waves(1.0)
    np.testing.assert_allclose(predictor.logits([0.05 * clip + 0.1]), predictor.logits([clip]), rtol=0, atol=1e-3)


def test_silence_has_finite_logits(predictor):
    assert np.isfinite(predictor.logits([np.zeros(16_000, np.float32), *waves(0.5)])).all()


def test_no_waves(predictor):
    assert predictor.logits([]).shape == (0, 4)
    assert predictor.probabilities([]).shape == (0, 4)


def test_dropout_is_off_and_calls_are_independent(predictor):
    clips = waves(1.0, 0.4)
    np.testing.assert_array_equal(predictor.logits(clips), predictor.logits(clips))


def test_a_loaded_checkpoint_equals_the_saved_model(predictor, tmp_path):
    loaded = Predictor.load(tiny.checkpoint(tmp_path))
    np.testing.assert_array_equal(loaded.logits(waves(1.0, 0.4)), predictor.logits(waves(1.0, 0.4)))
    assert (loaded.model_id, loaded.languages, loaded.emotions) == (
        "test/tiny", ("en", "de"), ("anger", "happiness", "neutral", "sadness"),
    )  # fmt: skip


def probe(folder: Path, seed: int) -> Predictor:
    """Return a predictor with a head of its own on a frozen encoder that all probes share."""
    source = ModelConfig(pretrained=str(folder), freeze_encoder=True)
    return Predictor(build_model(source, PAPER_EMOTIONS, seed=seed), tiny.card())


def test_a_shared_frozen_encoder_runs_once(tmp_path, monkeypatch):
    checkpoint = Path(tiny.checkpoint(tmp_path, seed=7))
    predictors = {"a": probe(checkpoint, 1), "b": probe(checkpoint, 2), "c": Predictor(tiny.model(seed=3), tiny.card())}
    predictors["b"].model.network.classifier.bias.data += torch.arange(4.0)
    clips = waves(1.0, 0.3, 0.6)
    alone = {name: predictor.logits(clips) for name, predictor in predictors.items()}
    calls = []
    for name, predictor in predictors.items():
        extract = predictor.model.extract_features
        monkeypatch.setattr(
            predictor.model,
            "extract_features",
            lambda *a, name=name, extract=extract: calls.append(name) or extract(*a),
        )
    outputs = predict_with_models(clips, {name: (predictor, None) for name, predictor in predictors.items()})
    assert calls == ["a", "c"]  # one batch; a and b share an encoder
    for name, expected in alone.items():
        np.testing.assert_allclose(outputs[name][0], expected, rtol=0, atol=1e-6)
        assert outputs[name][1] is None
    assert np.abs(alone["a"] - alone["b"]).max() > 1e-3


def test_a_language_aware_student_with_and_without_the_language():
    predictor = Predictor(tiny.aware(), tiny.card(tiny.LANGUAGES))
    clips = waves(1.0, 0.3, 0.6)
    logits_BC, languages_BL = predictor._predict_logits(clips)
    assert languages_BL is not None and languages_BL.shape == (3, 3)
    identified = [predictor.identifiable_languages[index] for index in languages_BL.argmax(axis=1)]
    np.testing.assert_array_equal(predictor.logits(clips, identified), logits_BC)
    for index, clip in enumerate(clips):
        mixed = predictor.logits([clip, clips[0]], ["xx", None])
        np.testing.assert_allclose(mixed[0], predictor.logits([clip], ["xx"])[0], rtol=0, atol=1e-5)
        assert np.isfinite(logits_BC[index]).all()


def test_logits_from_features_equal_logits_from_waves(tmp_path):
    predictor = probe(Path(tiny.checkpoint(tmp_path)), 1)
    clips = waves(1.0, 0.3)
    with torch.inference_mode():
        features = [predictor.model.extract_features(*pad_batch([torch.from_numpy(clip)]))[0].numpy() for clip in clips]
    np.testing.assert_allclose(predictor.logits_from_features(features), predictor.logits(clips), rtol=0, atol=1e-5)
