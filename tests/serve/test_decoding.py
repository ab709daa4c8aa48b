"""Decoding processes: what they survive."""

import asyncio
import os
import signal
import time

import numpy as np
import pytest

from lakd_ray.audio import read
from lakd_ray.serve import decoding
from lakd_ray.serve.decoding import Decoders
from lakd_ray.serve.upload import RequestError


def crash(content: bytes, max_seconds: float) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(content: bytes, max_seconds: float) -> None:
    time.sleep(60)


def devour(content: bytes, max_seconds: float) -> None:
    np.ones(1 << 30)


def ask(decoders: Decoders, content: bytes = b"", max_seconds: float = 10.0):
    return asyncio.run(decoders.read(content, max_seconds))


def test_a_recording_is_what_the_door_makes_of_it(decoders, recording):
    content = recording(1.0, rate=44_100, channels=2)
    found, expected = ask(decoders, content), read(content, where="here")
    assert np.array_equal(found.wave_T, expected.wave_T)
    assert (found.cut, found.clipped) == (expected.cut, expected.clipped)


@pytest.mark.parametrize(("fault", "words"), [(crash, "broke down"), (hang, "within 0.5 s"), (devour, "broke down")])
def test_what_breaks_a_process_is_refused_and_the_next_one_answered(monkeypatch, recording, fault, words):
    with Decoders(1, memory_mb=256, seconds=0.5) as decoders:
        asyncio.run(decoders.warm())
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_read", fault)
            with pytest.raises(RequestError, match=words) as refused:
                ask(decoders)
            assert refused.value.status == 422
        asyncio.run(decoders.warm())  # another process has to load what it needs
        assert len(ask(decoders, recording(1.0)).wave_T) == 16_000


def test_many_at_once(decoders, recording):
    contents = [recording(0.2 + 0.1 * n) for n in range(12)]

    async def all_of_them() -> list[int]:
        found = await asyncio.gather(*[decoders.read(content, 10.0) for content in contents])
        return [len(one.wave_T) for one in found]

    assert asyncio.run(all_of_them()) == [3_200 + 1_600 * n for n in range(12)]
