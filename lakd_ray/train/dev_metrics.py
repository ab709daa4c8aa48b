"""Compute the metrics of an epoch on dev.

Shapes: N dev utterances, C classes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from lakd_ray import metrics
from lakd_ray.data.class_coverage import find_missing_emotions
from lakd_ray.inference.predictor import softmax
from lakd_ray.train.data_loader import RankDataLoader

_MAX_CALIBRATION_FOLDS = 5


def compute_dev_metrics(
    loader: RankDataLoader, rows_N: npt.NDArray[np.int64], logits_NC: npt.NDArray[np.floating[Any]]
) -> dict[str, Any]:
    """Return UR of each language, their mean (which selects the epoch), pooled WR, cross-entropy and calibration.

    UR in a language is over the classes that dev has there, which are the same in every epoch; `dev_missing_emotions`
    lists the others. The temperature is fitted on all of dev; `dev_ece` is cross-fitted, see `cross_fitted_ece`.
    """
    manifest, emotions = loader.manifest, loader.run.emotions
    labels_N = manifest.labels_N[rows_N]
    languages_N = manifest.languages_N[rows_N].astype(str)
    speakers_N = np.asarray(manifest.table["speaker"].take(rows_N).to_pylist(), dtype=str)
    probabilities_NC = softmax(logits_NC)
    recall = {
        code: metrics.compute_scores(probabilities_NC[languages_N == code], labels_N[languages_N == code], emotions).UR
        for code in loader.run.languages
    }
    label_probabilities_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    return {
        "dev_UR": float(np.mean(list(recall.values()))),
        "dev_WR": metrics.compute_scores(probabilities_NC, labels_N, emotions).WR,
        "dev_ce": float(-np.log(np.maximum(label_probabilities_N, 1e-12)).mean()),
        "dev_recall": recall,
        "dev_missing_emotions": find_missing_emotions(np.asarray(emotions)[labels_N], languages_N, loader.config),
        "dev_ece": cross_fitted_ece(logits_NC, labels_N, speakers_N),
        "calibration_temperature": metrics.fit_temperature(logits_NC, labels_N),
    }


def cross_fitted_ece(
    logits_NC: npt.NDArray[np.floating[Any]], labels_N: npt.NDArray[np.int64], speakers_N: npt.NDArray[np.str_]
) -> float | None:
    """Return the calibration error of speakers whose temperature is fitted on the other speakers of dev.

    An error measured on the utterances that fit the temperature would be too low. The speakers are divided into five
    parts, or into as many as there are speakers.

    Returns:
        The expected calibration error; None with a single speaker.
    """
    names, speaker_N = np.unique(speakers_N, return_inverse=True)
    if len(names) < 2:
        return None
    part_N = speaker_N % min(_MAX_CALIBRATION_FOLDS, len(names))
    temperature_N = np.ones(len(labels_N))
    for part in np.unique(part_N):
        held_out_N = part_N == part
        temperature_N[held_out_N] = metrics.fit_temperature(logits_NC[~held_out_N], labels_N[~held_out_N])
    scaled_NC = (logits_NC / temperature_N[:, None]).astype(np.float32)
    return metrics.expected_calibration_error(softmax(scaled_NC), labels_N)
