"""Decoding processes: what they survive."""

import asyncio
import signal

import numpy as np
import pytest

from lakd_ray.audio import decode_recording
from lakd_ray.serve import decoding
from lakd_ray.serve.decoding import RequestDecoder
from lakd_ray.serve.upload import RequestError


def ask(decoders: RequestDecoder, content: bytes = b"", max_seconds: float = 10.0):
    return asyncio.run(decoders.decode(content, max_seconds))


def test_a_recording_is_what_the_door_makes_of_it(decoders, recording):
    content = recording(1.0, rate=44_100, channels=2)
    found, expected = ask(decoders, content), decode_recording(content, source_name="here")
    assert np.array_equal(found.wave_T, expected.wave_T)
    assert (found.is_cut, found.clipped_fraction) == (expected.is_cut, expected.clipped_fraction)


def killed(content: bytes, **limits: object) -> None:
    signal.raise_signal(signal.SIGSEGV)


def test_what_breaks_a_process_is_refused(decoders, recording, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RequestError, match="broke down") as refused:
        patch.setattr(decoding, "decode_recording", killed)
        ask(decoders)
    assert refused.value.status == 422
    assert len(ask(decoders, recording(1.0)).wave_T) == 16_000


@pytest.mark.parametrize(
    ("seconds", "status", "words"), [(0.05, 422, "expected at least"), (11.0, 413, "longer than the limit")]
)
def test_what_is_too_short_or_too_long_is_refused(decoders, recording, seconds, status, words):
    with pytest.raises(RequestError, match=words) as refused:
        ask(decoders, recording(seconds))
    assert refused.value.status == status


def test_many_at_once(decoders, recording):
    contents = [recording(0.2 + 0.1 * n) for n in range(12)]

    async def all_of_them() -> list[int]:
        found = await asyncio.gather(*[decoders.decode(content, 10.0) for content in contents])
        return [len(one.wave_T) for one in found]

    assert asyncio.run(all_of_them()) == [3_200 + 1_600 * n for n in range(12)]
