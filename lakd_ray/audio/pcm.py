"""Resample to 16 kHz, convert between float and 16-bit samples, and encode and decode the FLAC of shards."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

SAMPLE_RATE = 16_000

Wave = npt.NDArray[np.float32]
PcmSamples = npt.NDArray[np.int16]


def resample(wave_T: Wave, sample_rate: int) -> Wave:
    """Resample to 16 kHz with torchaudio's windowed sinc filter."""
    import torch  # takes seconds to load, and only recordings at other rates need it
    from torchaudio.functional import resample as sinc

    with torch.inference_mode():
        resampled: Wave = sinc(torch.from_numpy(np.ascontiguousarray(wave_T)), sample_rate, SAMPLE_RATE).numpy()
    return resampled


def to_int16(wave_T: Wave) -> PcmSamples:
    """Convert float samples to 16-bit integers, clipped at full scale."""
    return np.asarray(np.clip(np.rint(np.clip(wave_T, -1, 1) * 32768.0), -32768, 32767), dtype=np.int16)


def to_float(samples_T: PcmSamples) -> Wave:
    """Convert 16-bit samples to floats in [-1, 1), the inverse of `to_int16`."""
    return samples_T.astype(np.float32) / np.float32(32768)


def encode_flac(samples_T: PcmSamples) -> bytes:
    """Encode 16-bit samples at 16 kHz as FLAC."""
    buffer: Any = io.BytesIO()
    soundfile.write(buffer, samples_T, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return bytes(buffer.getvalue())


def decode_flac(content: bytes) -> PcmSamples:
    """Decode a clip of a shard, shape [T], without checks: shards contain only output of `encode_flac`."""
    samples_T, _ = soundfile.read(io.BytesIO(content), dtype="int16")
    return np.asarray(samples_T, dtype=np.int16)
