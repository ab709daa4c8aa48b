"""Tests of `RequestDecoder`: decoding of untrusted requests in worker processes."""

import asyncio
import errno
import signal

import numpy as np
import pytest

from lakd_ray.audio import Recording, decode_recording
from lakd_ray.serve import decoding
from lakd_ray.serve.decoding import RequestDecoder
from lakd_ray.serve.errors import RequestError


def decode(decoders: RequestDecoder, content: bytes = b"", max_seconds: float = 10.0) -> Recording:
    return asyncio.run(decoders.decode(content, max_seconds))


def test_result_equals_that_of_decode_recording(decoders, recording):
    content = recording(1.0, rate=44_100, channels=2)
    actual, expected = decode(decoders, content), decode_recording(content, source_name="a clip")
    assert np.array_equal(actual.wave_T, expected.wave_T)
    assert (actual.is_cut, actual.clipped_fraction) == (expected.is_cut, expected.clipped_fraction)


def crash(content: bytes, **limits: object) -> None:
    signal.raise_signal(signal.SIGSEGV)


def test_recording_that_crashes_the_decoder_is_rejected(decoders, recording, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RequestError, match="crashed the decoder") as refused:
        patch.setattr(decoding, "decode_recording", crash)
        decode(decoders)
    assert refused.value.status == 422
    assert len(decode(decoders, recording(1.0)).wave_T) == 16_000


def lack_room(content: bytes, **limits: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_lack_of_resources_is_a_503(decoders, monkeypatch):
    monkeypatch.setattr(decoding, "decode_recording", lack_room)
    with pytest.raises(RequestError, match="No space left") as refused:
        decode(decoders)
    assert refused.value.status == 503


@pytest.mark.parametrize(
    ("seconds", "status", "message"), [(0.05, 422, "expected at least"), (11.0, 413, "longer than the limit")]
)
def test_too_short_and_too_long_recordings_are_rejected(decoders, recording, seconds, status, message):
    with pytest.raises(RequestError, match=message) as refused:
        decode(decoders, recording(seconds))
    assert refused.value.status == status


def test_concurrent_requests(decoders, recording):
    contents = [recording(0.2 + 0.1 * n) for n in range(12)]

    async def decode_all() -> list[int]:
        recordings = await asyncio.gather(*[decoders.decode(content, 10.0) for content in contents])
        return [len(decoded.wave_T) for decoded in recordings]

    assert asyncio.run(decode_all()) == [3_200 + 1_600 * n for n in range(12)]
