"""What the tests of the endpoint share."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

Recording = Callable[..., bytes]
Endpoint = Callable[..., tuple[str, "subprocess.Popen[str]"]]


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


@pytest.fixture
def endpoint(tiny_checkpoint: str, tmp_path: Path) -> Iterator[Endpoint]:
    """Starts an endpoint of Ray Serve in a process of its own, with settings of the `serve` section."""
    with ExitStack() as stack:

        def start(**settings: Any) -> tuple[str, "subprocess.Popen[str]"]:
            return stack.enter_context(_running(tiny_checkpoint, tmp_path, settings))

        yield start


@contextmanager
def _running(checkpoint: str, folder: Path, settings: dict[str, Any]) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    log = folder / "endpoint.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).parents[1] / "support" / "endpoint.py"),
                checkpoint,
                json.dumps(settings),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # ray.init writes an access token to HOME, and gives up after 30 s unless told to wait
            env={**os.environ, "HOME": str(folder), "RAY_raylet_start_wait_time_s": "120"},
        )
    with process:
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), f"the endpoint did not start:\n{log.read_text()}"
            yield url, process
        finally:
            process.stdin.close()
            if process.wait(timeout=60):
                print(log.read_text())


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> str:
    """A sealed checkpoint of a very small real model, with emotions of the paper and languages en and de."""
    from support.tiny_models import checkpoint  # loads torch

    return checkpoint(tmp_path, languages=("en", "de"))
