"""Steps between a recording and its `EmotionResult`: checks, segments, warnings and the assembled result.

These functions are pure and load neither torch nor Ray. `lakd_ray.inference.predictor.Predictor` uses them in process,
and the endpoint uses them around the calls of its replicas, so both return the same results.
"""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from lakd_ray.audio import SAMPLE_RATE, Recording, Wave, decode_recording, sources
from lakd_ray.errors import ClipError, DataError
from lakd_ray.inference.options import PredictOptions
from lakd_ray.inference.results import EmotionResult, InputWarning, ModelInfo, Prediction, Segment

RECORDING_LABEL = "the recording"  # its name in messages
MIN_SECONDS = 0.1  # shorter recordings have less than a few frames of any encoder
MAX_SECONDS = 120.0  # default limit, as `serve.max_seconds`
MAX_SEGMENTS = 500
AudioSource = str | os.PathLike[str] | bytes | npt.NDArray[np.floating[Any]]
"""A path or s3:// location, the bytes of an encoded file, or samples in [-1, 1], shape [T] or [T, channels]."""
_SHORT_RECORDING_S = 1.0
_CLIPPED_FRACTION = 0.005  # share of samples at full scale from which clipping is audible
_SILENT_DB = -60.0


def read_recording(
    source: AudioSource, *, sample_rate: int | None = None, max_seconds: float = MAX_SECONDS, name: str | None = None
) -> Recording:
    """Read and decode a recording, with the checks of the endpoint.

    Args:
        source: see `AudioSource`.
        sample_rate: rate of an array in Hz; files have their own.
        max_seconds: longer recordings are rejected.
        name: names the recording in errors; the path of a file if None.

    Raises:
        ClipError: it cannot be read or decoded, or is too short or too long.
        DataError: an array is not of floats, or has no sample rate.
    """
    if isinstance(source, str | os.PathLike):
        location = os.fspath(source)
        return decode_and_validate(sources.read_clip_source(location), max_seconds, name or location)
    name = name or RECORDING_LABEL
    if isinstance(source, bytes):
        return decode_and_validate(source, max_seconds, name)
    return decode_and_validate(_encode_wav(source, sample_rate, name), max_seconds, name)


def _encode_wav(samples: npt.NDArray[np.floating[Any]], sample_rate: int | None, name: str) -> bytes:
    """Return an array as the bytes of a WAV file, which then passes the checks of all files."""
    if sample_rate is None:
        raise DataError(f"{name} is an array without a sample rate: pass sample_rate, in Hz")
    if not np.issubdtype(samples.dtype, np.floating) or samples.ndim not in (1, 2):
        raise DataError(
            f"{name} is an array of {samples.dtype}, shape {list(samples.shape)}; expected floats in [-1, 1], shape "
            "[T] or [T, channels]"
        )
    buffer: Any = io.BytesIO()
    soundfile.write(buffer, samples, int(sample_rate), format="WAV", subtype="FLOAT")
    return bytes(buffer.getvalue())


def decode_and_validate(content: bytes, max_seconds: float, name: str = RECORDING_LABEL) -> Recording:
    """Decode an encoded recording and check its duration.

    Raises:
        ClipError: it cannot be decoded, or is too short or too long.
    """
    return validate_duration(
        decode_recording(content, source_name=name, max_seconds=max_seconds + 1), max_seconds, name
    )


def validate_duration(recording: Recording, max_seconds: float, name: str = RECORDING_LABEL) -> Recording:
    """Return the recording unchanged if its duration is within the limits.

    Raises:
        ClipError: it is shorter than `MIN_SECONDS` or longer than `max_seconds`.
    """
    seconds = len(recording.wave_T) / SAMPLE_RATE
    if seconds > max_seconds + 0.01:  # resampling may add a sample
        raise ClipError(f"{name} is longer than the limit of {max_seconds:g} s", "long")
    if seconds < MIN_SECONDS:
        raise ClipError(f"{name} lasts {seconds:.3f} s, expected at least {MIN_SECONDS} s", "short")
    return recording


def validate_segment_count(num_samples: int, options: PredictOptions) -> None:
    """Check that a timeline does not have too many segments.

    Raises:
        DataError: it has more than `MAX_SEGMENTS`.
    """
    count = len(plan_segments(num_samples, options))
    if count > MAX_SEGMENTS:
        raise DataError(f"the timeline has {count} segments, expected at most {MAX_SEGMENTS}: raise the hop (hop_s)")


def plan_segments(num_samples: int, options: PredictOptions) -> list[tuple[int, int]]:
    """Return the first and end sample of each segment of the timeline; empty without `window_s`.

    The last segment ends with the recording and is as long as the others.
    """
    if options.window_s is None:
        return []
    window = round(options.window_s * SAMPLE_RATE)
    hop = max(1, round((options.hop_s or options.window_s) * SAMPLE_RATE))
    if num_samples <= window:
        return [(0, num_samples)]
    starts = list(range(0, num_samples - window, hop))
    return [(start, start + window) for start in [*starts, num_samples - window]]


def plan_waves(recording: Recording, options: PredictOptions) -> list[Wave]:
    """Return the waves to run through the model: the complete recording, then the segments of its timeline."""
    wave_T = recording.wave_T
    return [wave_T, *(wave_T[start:end] for start, end in plan_segments(len(wave_T), options))]


def assemble_result(
    info: ModelInfo, recording: Recording, predictions: Sequence[Prediction], options: PredictOptions
) -> EmotionResult:
    """Build the result of a recording from the predictions of its waves.

    Args:
        info: the model that made the predictions.
        predictions: in the order of `plan_waves(recording, options)`.
    """
    complete, *parts = predictions
    num_samples = len(recording.wave_T)
    segments = [
        Segment(
            start_s=start / SAMPLE_RATE,
            end_s=end / SAMPLE_RATE,
            emotion=_top_emotion(info, part),
            probabilities=_top_probabilities(info, part, options.top_k),
        )
        for (start, end), part in zip(plan_segments(num_samples, options), parts, strict=True)
    ]
    return EmotionResult(
        emotion=_top_emotion(info, complete),
        probabilities=_top_probabilities(info, complete, options.top_k),
        language=options.language or complete.language,
        language_probability=None if options.language else complete.language_probability,
        duration_s=num_samples / SAMPLE_RATE,
        segments=None if options.window_s is None else tuple(segments),
        warnings=input_warnings(info, recording, options.language),
        model=info.model,
        version=info.version,
    )


def input_warnings(info: ModelInfo, recording: Recording, language: str | None = None) -> tuple[InputWarning, ...]:
    """Return warnings about properties of the recording that make its result less reliable."""
    wave_T = recording.wave_T
    seconds = len(wave_T) / SAMPLE_RATE
    loudness_db = 10 * np.log10(float(np.mean(np.square(wave_T, dtype=np.float64))) + 1e-20)
    warnings = []
    if seconds < _SHORT_RECORDING_S:
        message = f"only {seconds:.2f} s; results are reliable from about {_SHORT_RECORDING_S:g} s on"
        warnings.append(InputWarning(code="short", message=message))
    if recording.clipped_fraction > _CLIPPED_FRACTION:
        message = f"{recording.clipped_fraction:.1%} of the samples are at full scale: lower the recording level"
        warnings.append(InputWarning(code="clipped", message=message))
    if loudness_db < _SILENT_DB:
        message = f"almost silent ({loudness_db:.0f} dB of full scale)"
        warnings.append(InputWarning(code="silent", message=message))
    if recording.channel is not None:
        channel = recording.channel + 1
        message = f"the channels have opposite polarity and cancel each other out: only channel {channel} was used"
        warnings.append(InputWarning(code="channels", message=message))
    if language is not None and language not in info.languages:
        message = f"the model was trained on {', '.join(info.languages)}, not on {language}"
        warnings.append(InputWarning(code="language", message=message))
    return tuple(warnings)


def _top_emotion(info: ModelInfo, prediction: Prediction) -> str:
    return info.emotions[int(np.argmax(prediction.probabilities))]


def _top_probabilities(info: ModelInfo, prediction: Prediction, top_k: int | None) -> dict[str, float]:
    probabilities = dict(zip(info.emotions, prediction.probabilities, strict=True))
    if top_k is None:
        return probabilities
    return dict(sorted(probabilities.items(), key=lambda item: -item[1])[:top_k])
