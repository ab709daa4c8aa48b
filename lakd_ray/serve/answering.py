"""From a recording to its answer, wherever the model runs: in this process, or behind a handle of Ray Serve.

The endpoint, bulk prediction and the command line all answer by these functions, and evaluation by the same predictor.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lakd_ray.audio import SAMPLE_RATE, Recording, Wave
from lakd_ray.errors import ClipError
from lakd_ray.serve.answers import Answer, ModelCard, Prediction, Remark, Said, Segment

if TYPE_CHECKING:  # loads torch, which the process that speaks HTTP does without
    from lakd_ray.infer.predictor import Predictor

WHERE = "the recording"  # what messages call it
MIN_SECONDS = 0.1  # less than a few frames of any encoder
MAX_SEGMENTS = 500
_SHORT_S = 1.0
_CLIPPED = 0.005  # share of samples at full scale, from which on it is heard
_SILENT_DB = -60.0


class Model(Protocol):
    """A model, wherever it runs."""

    async def card(self) -> ModelCard:
        """What it is."""

    async def predict(self, waves: Sequence[Wave], language: str | None) -> Said:
        """What it says of recordings in a language; None if it is to hear which."""


class LocalModel:
    """A predictor in this process."""

    def __init__(self, predictor: "Predictor"):
        self._predictor = predictor

    async def card(self) -> ModelCard:
        """What it is."""
        return describe(self._predictor)

    async def predict(self, waves: Sequence[Wave], language: str | None) -> Said:
        """What it says of recordings."""
        found = predictions(self._predictor, waves, [language] * len(waves))
        return Said(card=describe(self._predictor), predictions=tuple(found))


def describe(predictor: "Predictor") -> ModelCard:
    """The card of a model."""
    dev = predictor.card.training.get("dev", {})
    scores = {name: dev[f"dev_{name}"] for name in ("UR", "WR", "ece") if f"dev_{name}" in dev}
    return ModelCard(
        model=predictor.model_id,
        version=predictor.version,
        emotions=predictor.emotions,
        languages=predictor.languages,
        hears=predictor.hears,
        corpora=predictor.card.corpora,
        dev=scores | {f"UR {code}": recall for code, recall in dev.get("dev_recall", {}).items()},
        calibration_temperature=predictor.temperature,
    )


def predictions(predictor: "Predictor", waves: Sequence[Wave], languages: Sequence[str | None]) -> list[Prediction]:
    """What a model says of recordings, each in its language, None if the model is to hear which."""
    from lakd_ray.infer.predictor import softmax  # as above

    logits_BC, heard_BL = predictor.answer(waves, languages)
    rows = softmax(logits_BC / predictor.temperature).tolist()
    if heard_BL is None:
        return [Prediction(probabilities=row) for row in rows]
    shares_BL = softmax(heard_BL)
    return [
        Prediction(
            probabilities=row,
            language=predictor.hears[int(share_L.argmax())],
            language_probability=float(share_L.max()),
        )
        for row, share_L in zip(rows, shares_BL, strict=True)
    ]


async def answer(
    model: Model,
    recording: Recording,
    *,
    language: str | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    top_k: int | None = None,
) -> Answer:
    """The answer to a recording.

    Args:
        language: its language; None if that is to be heard, or is not known.
        window_s: length of the segments of a timeline; no timeline if None.
        hop_s: from one segment's begin to the next one's, `window_s` if None.
        top_k: how many of the most probable emotions are told; all, in the order of the logits, if None.
    """
    wave_T = recording.wave_T
    spans = [] if window_s is None else segments(len(wave_T), window_s, hop_s or window_s)
    said = await model.predict([wave_T, *(wave_T[start:end] for start, end in spans)], language)
    card, (whole, *parts) = said.card, said.predictions
    timeline = [
        Segment(
            start_s=start / SAMPLE_RATE,
            end_s=end / SAMPLE_RATE,
            emotion=_best(card, part),
            probabilities=_shares(card, part, top_k),
        )
        for (start, end), part in zip(spans, parts, strict=True)
    ]
    return Answer(
        emotion=_best(card, whole),
        probabilities=_shares(card, whole, top_k),
        language=language or whole.language,
        language_probability=None if language else whole.language_probability,
        duration_s=len(wave_T) / SAMPLE_RATE,
        segments=None if window_s is None else tuple(timeline),
        warnings=remarks(card, recording, language),
        model=card.model,
        version=card.version,
    )


def checked(recording: Recording, max_seconds: float) -> Recording:
    """A recording, if it can be answered.

    Raises:
        ClipError: it is shorter or longer than it may be.
    """
    seconds = len(recording.wave_T) / SAMPLE_RATE
    if seconds > max_seconds + 0.01:  # resampling may add a sample
        raise ClipError(f"{WHERE} is longer than the limit of {max_seconds:g} s", "long")
    if seconds < MIN_SECONDS:
        raise ClipError(f"{WHERE} lasts {seconds:.3f} s, expected at least {MIN_SECONDS} s", "short")
    return recording


def segments(samples: int, window_s: float, hop_s: float) -> list[tuple[int, int]]:
    """Where segments begin and end, in samples: the last one ends with the recording and is as long as the others."""
    window, hop = round(window_s * SAMPLE_RATE), max(1, round(hop_s * SAMPLE_RATE))
    if samples <= window:
        return [(0, samples)]
    starts = list(range(0, samples - window, hop))
    return [(start, start + window) for start in [*starts, samples - window]]


def remarks(card: ModelCard, recording: Recording, language: str | None = None) -> tuple[Remark, ...]:
    """What makes the answer to a recording less worth."""
    wave_T = recording.wave_T
    seconds, found = len(wave_T) / SAMPLE_RATE, []
    loudness = 10 * np.log10(float(np.mean(np.square(wave_T, dtype=np.float64))) + 1e-20)
    if seconds < _SHORT_S:
        found.append(
            Remark(code="short", message=f"only {seconds:.2f} s; from about {_SHORT_S:g} s on it is heard well")
        )
    if recording.clipped > _CLIPPED:
        found.append(
            Remark(
                code="clipped", message=f"{recording.clipped:.1%} of the samples are at full scale: record less loud"
            )
        )
    if loudness < _SILENT_DB:
        found.append(Remark(code="silent", message=f"hardly anything is heard ({loudness:.0f} dB of full scale)"))
    if language is not None and language not in card.languages:
        known = ", ".join(card.languages)
        found.append(Remark(code="language", message=f"the model was trained on {known}, not on {language}"))
    return tuple(found)


def _best(card: ModelCard, said: Prediction) -> str:
    return card.emotions[int(np.argmax(said.probabilities))]


def _shares(card: ModelCard, said: Prediction, top_k: int | None) -> dict[str, float]:
    shares = dict(zip(card.emotions, said.probabilities, strict=True))
    if top_k is None:
        return shares
    return dict(sorted(shares.items(), key=lambda item: -item[1])[:top_k])
