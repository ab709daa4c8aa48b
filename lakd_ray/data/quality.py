"""Check whether a recording is good enough, by the limits of the section `audio`."""

import hashlib
import logging
from typing import Any

import numpy as np

from lakd_ray.audio import SAMPLE_RATE, Recording, decode_recording, encode_flac, to_int16
from lakd_ray.config import AudioConfig
from lakd_ray.errors import ClipError

logger = logging.getLogger(__name__)


def decode_and_validate(
    content: bytes, *, source_name: str, start: float | None, end: float | None, audio_config: AudioConfig
) -> dict[str, Any]:
    """Decode, check and encode a clip; return the audio columns of its shard row.

    Raises:
        ClipError: the clip has to be quarantined.
    """
    recording = decode_recording(
        content, source_name=source_name, max_seconds=audio_config.max_seconds, start=start, end=end
    )
    if recording.channel is not None:
        logger.warning(
            f"{source_name}: its channels have opposite polarity and cancel each other out; channel "
            f"{recording.channel + 1} is used instead of their mean"
        )
    check_quality(recording, audio_config)
    samples_T = to_int16(recording.wave_T)
    return {
        "num_samples": len(samples_T),
        "cut": recording.is_cut,
        "audio_sha256": hashlib.sha256(samples_T.tobytes()).hexdigest(),
        "audio": encode_flac(samples_T),
    }


def check_quality(recording: Recording, audio_config: AudioConfig) -> None:
    """Reject a recording that is too short, too long, silent or clipped.

    Raises:
        ClipError: it is rejected, with the kind of the problem.
    """
    seconds = len(recording.wave_T) / SAMPLE_RATE
    if seconds < audio_config.min_seconds:
        raise ClipError(f"{seconds:.3f} s long, shorter than audio.min_seconds={audio_config.min_seconds}", "short")
    if recording.is_cut and audio_config.on_too_long == "quarantine":
        raise ClipError(f"longer than audio.max_seconds={audio_config.max_seconds}", "long")
    peak = float(np.abs(recording.wave_T - recording.wave_T.mean()).max())  # a constant offset is inaudible
    if peak < 10 ** (audio_config.silence_dbfs / 20):
        level = f"{20 * np.log10(peak):.0f} dBFS" if peak > 1e-6 else "digital silence"
        raise ClipError(
            f"silent: its peak is {level}, below audio.silence_dbfs={audio_config.silence_dbfs:g}", "silent"
        )
    if recording.clipped_fraction > audio_config.max_clipped_fraction:
        fraction = f"{recording.clipped_fraction:.0%} of its samples are at full scale"
        raise ClipError(
            f"clipped: {fraction}, more than audio.max_clipped_fraction={audio_config.max_clipped_fraction:g}",
            "clipped",
        )
