"""Fuzz test of decoding: a corrupted recording gives a ClipError or valid samples, in bounded time and memory."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.fuzzing import FORMATS, corrupted_recordings, encode_tone

from lakd_ray.audio import SAMPLE_RATE, decode_recording, resample
from lakd_ray.data.schema import QUARANTINE_KINDS
from lakd_ray.errors import ClipError

DEADLINE_S = 10.0  # decoding takes a hundredth of this; the machine may be busy


def peak_memory_mb() -> int:
    """Return the peak resident memory of this process since the last write to `clear_refs`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def test_intact_recordings_of_every_format_are_decoded():
    for _, format, subtype in FORMATS:
        recording = decode_recording(encode_tone(format, subtype), source_name="a clip")
        assert len(recording.wave_T) == pytest.approx(0.3 * SAMPLE_RATE, rel=0.2)


@pytest.mark.parametrize("seed", range(4))
def test_corrupted_recordings(seed):
    resample(np.zeros(100, np.float32), 44_100)  # loads torch, whose memory must not be counted
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory_mb()
    outcomes: Counter[str] = Counter()
    for name, content in corrupted_recordings(260, seed=seed):
        started = time.monotonic()
        try:
            recording = decode_recording(content, source_name=name, max_seconds=20.0)
        except ClipError as error:
            assert name in str(error) and error.kind in QUARANTINE_KINDS
            outcomes[error.kind] += 1
        else:
            assert np.isfinite(recording.wave_T).all() and 0 < len(recording.wave_T) <= 20 * SAMPLE_RATE + 1
            outcomes["decoded"] += 1
        assert time.monotonic() - started < DEADLINE_S, name
    assert peak_memory_mb() - before < 200
    assert outcomes["decoded"] > 20 and outcomes["undecodable"] > 20 and outcomes["truncated"] > 10
