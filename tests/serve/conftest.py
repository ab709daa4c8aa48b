"""What the tests of the endpoint share."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

Recording = Callable[..., bytes]


@pytest.fixture(scope="session")
def recording() -> Recording:
    """Makes an encoded recording of quiet noise."""

    def make(seconds: float = 1.0, *, rate: int = 16_000, channels: int = 1, format: str = "WAV") -> bytes:
        noise = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
        buffer = io.BytesIO()
        soundfile.write(buffer, noise.clip(-1, 1), rate, format=format)
        return buffer.getvalue()

    return make


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> str:
    """A sealed checkpoint of a very small real model, with emotions of the paper and languages en and de."""
    from tiny import checkpoint  # loads torch

    return checkpoint(tmp_path, languages=("en", "de"))
