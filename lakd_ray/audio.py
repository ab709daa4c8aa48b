"""The audio door: bytes of a recording in, 16 kHz mono float32 out, and FLAC for the shards.

Decoding needs libsndfile alone; torchaudio is loaded only when a recording has another rate than 16 kHz.
"""

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from lakd_ray.errors import DataError

SAMPLE_RATE = 16_000
_MAX_FILTER = 20_000_000  # values in the resampling filter: 70 thousand for 44.1 kHz, 256 million (4 GB) for 15,999 Hz

Wave = npt.NDArray[np.float32]
Samples = npt.NDArray[np.int16]


def decode(content: bytes, *, where: str, max_seconds: float | None = None) -> Wave:
    """Decode a recording to 16 kHz mono.

    Args:
        content: an encoded file (WAV, FLAC, OGG, MP3).
        where: names the recording in errors.
        max_seconds: longer recordings are cut here, before they are decoded further.

    Returns:
        Samples in [-1, 1), shape [T], rounded to 16 bits: what a model is asked about when it serves is then exactly
        what it was trained and evaluated on.

    Raises:
        DataError: it cannot be decoded, is empty, holds values that are not numbers, or has an odd sample rate.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate = int(file.samplerate)
            _check_rate(rate, where)
            limit = -1 if max_seconds is None else round(max_seconds * rate)
            wave_TC = file.read(limit, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise DataError(f"cannot decode {where}: {error}; expected WAV, FLAC, OGG or MP3") from None
    if not len(wave_TC):
        raise DataError(f"{where} holds no samples")
    wave_T = wave_TC.mean(axis=1, dtype=np.float32)
    if not np.isfinite(wave_T).all():
        raise DataError(f"{where} holds values that are not finite numbers")
    return to_float(to_int16(wave_T if rate == SAMPLE_RATE else resample(wave_T, rate)))


def _check_rate(rate: int, where: str) -> None:
    """Refuse a rate that shares too few divisors with 16 kHz: a few bytes of header must not cost gigabytes."""
    common = math.gcd(rate, SAMPLE_RATE)
    if (rate // common) * (SAMPLE_RATE // common) > _MAX_FILTER:
        raise DataError(f"{where} has a sample rate of {rate} Hz, expected a usual one such as 16000 or 44100")


def resample(wave_T: Wave, rate: int) -> Wave:
    """Resample to 16 kHz by torchaudio's windowed sinc."""
    import torch  # seconds to load, and only recordings at other rates need it
    from torchaudio.functional import resample as sinc

    with torch.inference_mode():
        resampled: Wave = sinc(torch.from_numpy(np.ascontiguousarray(wave_T)), rate, SAMPLE_RATE).numpy()
    return resampled


def to_int16(wave_T: Wave) -> Samples:
    """Samples as 16-bit integers, clipped at full scale."""
    return np.asarray(np.clip(np.rint(wave_T * 32768.0), -32768, 32767), dtype=np.int16)


def to_float(samples_T: Samples) -> Wave:
    """16-bit samples as floats in [-1, 1); the inverse of `to_int16`."""
    return samples_T.astype(np.float32) / np.float32(32768)


def encode_flac(samples_T: Samples) -> bytes:
    """FLAC of 16-bit samples at 16 kHz."""
    buffer: Any = io.BytesIO()
    soundfile.write(buffer, samples_T, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return bytes(buffer.getvalue())


def decode_flac(content: bytes) -> Samples:
    """A shard's clip, shape [T]. Shards hold only what `encode_flac` wrote."""
    samples_T, _ = soundfile.read(io.BytesIO(content), dtype="int16")
    return np.asarray(samples_T, dtype=np.int16)


def normalise(wave_T: Wave) -> Wave:
    """Zero mean and unit variance over the utterance, as wav2vec2's feature extractor does."""
    return np.asarray((wave_T - wave_T.mean()) / np.sqrt(wave_T.var() + 1e-7), dtype=np.float32)
