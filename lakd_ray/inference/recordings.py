"""From a recording to its answer, wherever the model runs: in this process, or behind a handle of Ray Serve.

The endpoint, bulk prediction and the command line all answer by these functions, and evaluation by the same predictor.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lakd_ray.audio import SAMPLE_RATE, Recording, Wave
from lakd_ray.errors import ClipError
from lakd_ray.inference.results import EmotionResult, InputWarning, ModelInfo, ModelPredictions, Prediction, Segment

if TYPE_CHECKING:  # loads torch, which the process that speaks HTTP does without
    from lakd_ray.inference.predictor import Predictor

RECORDING_LABEL = "the recording"  # what messages call it
MIN_SECONDS = 0.1  # less than a few frames of any encoder
MAX_SEGMENTS = 500
_SHORT_RECORDING_S = 1.0
_CLIPPED_FRACTION = 0.005  # share of samples at full scale, from which on it is heard
_SILENT_DB = -60.0


class ModelHandle(Protocol):
    """A model, wherever it runs."""

    async def info(self) -> ModelInfo:
        """What it is."""

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        """What it says of recordings in a language; None if it is to hear which."""


class LocalModel:
    """A predictor in this process."""

    def __init__(self, predictor: "Predictor"):
        self._predictor = predictor

    async def info(self) -> ModelInfo:
        """What it is."""
        return model_info(self._predictor)

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        """What it says of recordings."""
        found = predict_waves(self._predictor, waves, [language] * len(waves))
        return ModelPredictions(info=model_info(self._predictor), predictions=tuple(found))


def model_info(predictor: "Predictor") -> ModelInfo:
    """The card of a model."""
    dev = predictor.metadata.training.get("dev", {})
    scores = {name: dev[f"dev_{name}"] for name in ("UR", "WR", "ece") if f"dev_{name}" in dev}
    return ModelInfo(
        model=predictor.model_id,
        version=predictor.version,
        emotions=predictor.emotions,
        languages=predictor.languages,
        identifiable_languages=predictor.identifiable_languages,
        corpora=predictor.metadata.corpora,
        dev=scores | {f"UR {code}": recall for code, recall in dev.get("dev_recall", {}).items()},
        calibration_temperature=predictor.calibration_temperature,
    )


def predict_waves(predictor: "Predictor", waves: Sequence[Wave], languages: Sequence[str | None]) -> list[Prediction]:
    """What a model says of recordings, each in its language, None if the model is to hear which."""
    from lakd_ray.inference.predictor import softmax  # as above

    logits_BC, heard_BL = predictor.predict_logits(waves, languages)
    rows = softmax(logits_BC / predictor.calibration_temperature).tolist()
    if heard_BL is None:
        return [Prediction(probabilities=row) for row in rows]
    shares_BL = softmax(heard_BL)
    return [
        Prediction(
            probabilities=row,
            language=predictor.identifiable_languages[int(share_L.argmax())],
            language_probability=float(share_L.max()),
        )
        for row, share_L in zip(rows, shares_BL, strict=True)
    ]


async def predict_recording(
    model: ModelHandle,
    recording: Recording,
    *,
    language: str | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    top_k: int | None = None,
) -> EmotionResult:
    """The answer to a recording.

    Args:
        language: its language; None if that is to be heard, or is not known.
        window_s: length of the segments of a timeline; no timeline if None.
        hop_s: from one segment's begin to the next one's, `window_s` if None.
        top_k: how many of the most probable emotions are told; all, in the order of the logits, if None.
    """
    wave_T = recording.wave_T
    spans = [] if window_s is None else segment_bounds(len(wave_T), window_s, hop_s or window_s)
    said = await model.predict([wave_T, *(wave_T[start:end] for start, end in spans)], language)
    card, (whole, *parts) = said.info, said.predictions
    timeline = [
        Segment(
            start_s=start / SAMPLE_RATE,
            end_s=end / SAMPLE_RATE,
            emotion=_top_emotion(card, part),
            probabilities=_top_probabilities(card, part, top_k),
        )
        for (start, end), part in zip(spans, parts, strict=True)
    ]
    return EmotionResult(
        emotion=_top_emotion(card, whole),
        probabilities=_top_probabilities(card, whole, top_k),
        language=language or whole.language,
        language_probability=None if language else whole.language_probability,
        duration_s=len(wave_T) / SAMPLE_RATE,
        segments=None if window_s is None else tuple(timeline),
        warnings=input_warnings(card, recording, language),
        model=card.model,
        version=card.version,
    )


def validate_duration(recording: Recording, max_seconds: float) -> Recording:
    """A recording, if it can be answered.

    Raises:
        ClipError: it is shorter or longer than it may be.
    """
    seconds = len(recording.wave_T) / SAMPLE_RATE
    if seconds > max_seconds + 0.01:  # resampling may add a sample
        raise ClipError(f"{RECORDING_LABEL} is longer than the limit of {max_seconds:g} s", "long")
    if seconds < MIN_SECONDS:
        raise ClipError(f"{RECORDING_LABEL} lasts {seconds:.3f} s, expected at least {MIN_SECONDS} s", "short")
    return recording


def segment_bounds(num_samples: int, window_s: float, hop_s: float) -> list[tuple[int, int]]:
    """Where segments begin and end, in samples: the last one ends with the recording and is as long as the others."""
    window, hop = round(window_s * SAMPLE_RATE), max(1, round(hop_s * SAMPLE_RATE))
    if num_samples <= window:
        return [(0, num_samples)]
    starts = list(range(0, num_samples - window, hop))
    return [(start, start + window) for start in [*starts, num_samples - window]]


def input_warnings(info: ModelInfo, recording: Recording, language: str | None = None) -> tuple[InputWarning, ...]:
    """What makes the answer to a recording less worth."""
    wave_T = recording.wave_T
    seconds, found = len(wave_T) / SAMPLE_RATE, []
    loudness = 10 * np.log10(float(np.mean(np.square(wave_T, dtype=np.float64))) + 1e-20)
    if seconds < _SHORT_RECORDING_S:
        found.append(
            InputWarning(
                code="short", message=f"only {seconds:.2f} s; from about {_SHORT_RECORDING_S:g} s on it is heard well"
            )
        )
    if recording.clipped_fraction > _CLIPPED_FRACTION:
        found.append(
            InputWarning(
                code="clipped",
                message=f"{recording.clipped_fraction:.1%} of the samples are at full scale: record less loud",
            )
        )
    if loudness < _SILENT_DB:
        found.append(InputWarning(code="silent", message=f"hardly anything is heard ({loudness:.0f} dB of full scale)"))
    if language is not None and language not in info.languages:
        known = ", ".join(info.languages)
        found.append(InputWarning(code="language", message=f"the model was trained on {known}, not on {language}"))
    return tuple(found)


def _top_emotion(info: ModelInfo, prediction: Prediction) -> str:
    return info.emotions[int(np.argmax(prediction.probabilities))]


def _top_probabilities(info: ModelInfo, prediction: Prediction, top_k: int | None) -> dict[str, float]:
    shares = dict(zip(info.emotions, prediction.probabilities, strict=True))
    if top_k is None:
        return shares
    return dict(sorted(shares.items(), key=lambda item: -item[1])[:top_k])
