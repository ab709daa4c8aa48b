"""Metrics of an epoch on dev."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lakd_ray import metrics
from lakd_ray.inference.predictor import softmax
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.train.dev_metrics import compute_dev_metrics, cross_fitted_ece

RANDOM = np.random.default_rng(0)


def utterances(count: int, scale: float) -> tuple[Any, Any]:
    """Return logits and labels of a model whose calibration temperature is `scale`."""
    logits_NC = RANDOM.normal(0, 1.5, size=(count, 4)).astype(np.float32)
    labels_N = np.array([RANDOM.choice(4, p=row / row.sum()) for row in softmax(logits_NC).astype(np.float64)])
    return scale * logits_NC, labels_N


def test_calibration_is_measured_on_speakers_that_did_not_fit_the_temperature():
    (first_NC, first_N), (second_NC, second_N) = utterances(400, 1.0), utterances(400, 4.0)
    logits_NC, labels_N = np.concatenate([first_NC, second_NC]), np.concatenate([first_N, second_N])
    speakers_N = np.repeat(["a", "b"], 400)
    temperatures = metrics.fit_temperature(second_NC, second_N), metrics.fit_temperature(first_NC, first_N)
    assert temperatures == pytest.approx((4.0, 1.0), rel=0.2)
    probabilities_NC = softmax(np.concatenate([first_NC / temperatures[0], second_NC / temperatures[1]]))
    expected = metrics.expected_calibration_error(probabilities_NC, labels_N)
    assert cross_fitted_ece(logits_NC, labels_N, speakers_N) == pytest.approx(expected, abs=1e-6)
    in_sample = softmax(logits_NC / metrics.fit_temperature(logits_NC, labels_N))
    assert expected > metrics.expected_calibration_error(in_sample, labels_N) + 0.02


def test_one_speaker_has_no_calibration_error():
    logits_NC, labels_N = utterances(8, 1.0)
    assert cross_fitted_ece(logits_NC, labels_N, np.repeat("a", 8)) is None


def test_recall_is_over_the_classes_that_dev_has():
    labels_N = np.array([0, 1, 0, 0])
    logits_NC = 9 * np.eye(4, dtype=np.float32)[[0, 2, 0, 3]]
    manifest = SimpleNamespace(
        labels_N=labels_N, languages_N=np.array(["en", "en", "fi", "fi"]), table=pa.table({"speaker": ["a", "b"] * 2})
    )
    run = SimpleNamespace(emotions=PAPER_EMOTIONS, languages=("en", "fi"))
    config = SimpleNamespace(emotions=PAPER_EMOTIONS, languages=("en", "fi"))
    loader: Any = SimpleNamespace(manifest=manifest, run=run, config=config)
    found = compute_dev_metrics(loader, np.array([3, 1, 2, 0]), logits_NC[[3, 1, 2, 0]])
    assert found["dev_recall"] == {"en": 0.5, "fi": 0.5} and found["dev_UR"] == 0.5
    assert found["dev_missing_emotions"] == {
        "en": ["neutral", "sadness"], "fi": ["happiness", "neutral", "sadness"],
    }  # fmt: skip
    assert found["calibration_temperature"] == pytest.approx(metrics.fit_temperature(logits_NC, labels_N))
