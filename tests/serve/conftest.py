"""What the tests of the endpoint share."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lakd_ray.serve.decoding import Decoders

Recording = Callable[..., bytes]


@pytest.fixture(scope="session")
def recording() -> Recording:
    """Makes an encoded recording of quiet noise."""

    def make(
        seconds: float = 1.0, *, rate: int = 16_000, channels: int = 1, format: str = "WAV", loudness: float = 0.1
    ) -> bytes:
        noise = loudness * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
        buffer = io.BytesIO()
        soundfile.write(buffer, noise.clip(-1, 1), rate, format=format)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def decoders() -> Iterator[Decoders]:
    """Real decoding processes."""
    with Decoders(2, seconds=5.0, memory_mb=512) as decoders:
        yield decoders


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> str:
    """A sealed checkpoint of a very small real model, with emotions of the paper and languages en and de."""
    from tiny import checkpoint  # loads torch

    return checkpoint(tmp_path, languages=("en", "de"))
