"""Spoilt recordings at the audio door: an error that names the kind or a sound wave, soon, in little memory."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.fuzzing import FORMATS, sound, spoilt

from lakd_ray.audio import SAMPLE_RATE, decode_recording, resample
from lakd_ray.data.schema import QUARANTINE_KINDS
from lakd_ray.errors import ClipError

DEADLINE_S = 10.0  # a hundred times what one takes; the machine may be busy


def peak_mb() -> int:
    """Most memory that this process has held since `clear_refs`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def test_whole_recordings_of_every_format_pass():
    for _, format, subtype in FORMATS:
        assert len(decode_recording(sound(format, subtype), source_name="a clip").wave_T) == pytest.approx(
            0.3 * SAMPLE_RATE, rel=0.2
        )


@pytest.mark.parametrize("seed", range(4))
def test_spoilt_recordings(seed):
    resample(np.zeros(100, np.float32), 44_100)  # loads torch, whose memory is not a recording's
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mb()
    met: Counter[str] = Counter()
    for name, content in spoilt(260, seed=seed):
        started = time.monotonic()
        try:
            recording = decode_recording(content, source_name=name, max_seconds=20.0)
        except ClipError as error:
            assert name in str(error) and error.kind in QUARANTINE_KINDS
            met[error.kind] += 1
        else:
            assert np.isfinite(recording.wave_T).all() and 0 < len(recording.wave_T) <= 20 * SAMPLE_RATE + 1
            met["sound"] += 1
        assert time.monotonic() - started < DEADLINE_S, name
    assert peak_mb() - before < 200
    assert met["sound"] > 20 and met["undecodable"] > 20 and met["truncated"] > 10
