"""Which recordings are good enough: the limits of the section `audio`, applied to one clip."""

import hashlib
from typing import Any

import numpy as np

from lakd_ray.audio import SAMPLE_RATE, Recording, encode_flac, read, to_int16
from lakd_ray.config import Audio
from lakd_ray.errors import ClipError


def admit(content: bytes, *, where: str, start: float | None, end: float | None, limits: Audio) -> dict[str, Any]:
    """Decode, judge and encode a clip: the audio columns of its shard row.

    Raises:
        ClipError: it goes to quarantine.
    """
    recording = read(content, where=where, max_seconds=limits.max_seconds, start=start, end=end)
    judge(recording, limits)
    samples_T = to_int16(recording.wave_T)
    return {
        "num_samples": len(samples_T),
        "cut": recording.cut,
        "audio_sha256": hashlib.sha256(samples_T.tobytes()).hexdigest(),
        "audio": encode_flac(samples_T),
    }


def judge(recording: Recording, limits: Audio) -> None:
    """Refuse a recording that is too short, too long, silent or clipped.

    Raises:
        ClipError: it is, with its kind.
    """
    seconds = len(recording.wave_T) / SAMPLE_RATE
    if seconds < limits.min_seconds:
        raise ClipError(f"{seconds:.3f} s long, shorter than audio.min_seconds={limits.min_seconds}", "short")
    if recording.cut and limits.too_long == "quarantine":
        raise ClipError(f"longer than audio.max_seconds={limits.max_seconds}", "long")
    peak = float(np.abs(recording.wave_T - recording.wave_T.mean()).max())  # a constant offset is not heard
    if peak < 10 ** (limits.silence_dbfs / 20):
        level = f"{20 * np.log10(peak):.0f} dBFS" if peak > 1e-6 else "digital silence"
        raise ClipError(f"silent: its peak is {level}, below audio.silence_dbfs={limits.silence_dbfs:g}", "silent")
    if recording.clipped > limits.max_clipped:
        share = f"{recording.clipped:.0%} of its samples are at full scale"
        raise ClipError(f"clipped: {share}, more than audio.max_clipped={limits.max_clipped:g}", "clipped")
