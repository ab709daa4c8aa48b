"""Fixtures of the endpoint's tests: recordings, an endpoint in a process of its own, and a page in a browser."""

import asyncio
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
from support import browser, web_page
from support.fake_model import FakeModel
from support.local_endpoint import running_api

Recording = Callable[..., bytes]
Endpoint = Callable[..., tuple[str, "subprocess.Popen[str]"]]
OpenPage = Callable[..., Any]


@pytest.fixture(scope="session")
def recording() -> Recording:
    """Creates encoded recordings of noise."""

    def create(
        seconds: float = 1.0, *, rate: int = 16_000, channels: int = 1, format: str = "WAV", loudness: float = 0.1
    ) -> bytes:
        noise = loudness * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
        buffer = io.BytesIO()
        soundfile.write(buffer, noise.clip(-1, 1), rate, format=format)
        return buffer.getvalue()

    return create


@pytest.fixture(scope="session")
def rising() -> bytes:
    """Four seconds of noise: two soft ones, then two loud ones."""
    noise = np.random.default_rng(0).standard_normal(64_000) * np.repeat([0.02, 0.3], 32_000)
    buffer = io.BytesIO()
    soundfile.write(buffer, noise.clip(-1, 1), 16_000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def endpoint(tiny_checkpoint: str, tmp_path: Path) -> Iterator[Endpoint]:
    """Starts an endpoint of Ray Serve in a separate process, with settings of the `serve` section."""
    with ExitStack() as stack:

        def start(**settings: Any) -> tuple[str, "subprocess.Popen[str]"]:
            return stack.enter_context(_running(tiny_checkpoint, tmp_path, settings))

        yield start


@contextmanager
def _running(checkpoint: str, folder: Path, settings: dict[str, Any]) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    log = folder / "endpoint.log"
    program = Path(__file__).parents[1] / "support" / "endpoint.py"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(program), checkpoint, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # ray.init writes an access token to HOME; the default start timeout of 30 s is too short on a busy machine
            env={**os.environ, "HOME": str(folder), "RAY_raylet_start_wait_time_s": "120"},
        )
    with process:
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), f"the endpoint did not start:\n{log.read_text()}"
            yield url, process
        finally:
            process.stdin.close()
            if process.wait(timeout=120):
                print(log.read_text())


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> str:
    """A checkpoint of a tiny real model, with the paper's emotions and the languages en and de."""
    from support.tiny_models import checkpoint  # loads torch

    return checkpoint(tmp_path, languages=("en", "de"))


@pytest.fixture(scope="module")
def chromium(decoders: Any) -> Iterator[Any]:
    """A browser, in which each test opens a context of its own."""
    asyncio.run(decoders.warmup())  # before Playwright starts, which runs an event loop in this thread
    with browser.chromium() as context:
        yield context.browser


@pytest.fixture
def open_page(chromium: Any, decoders: Any) -> OpenPage:
    """Opens the page of an endpoint, and checks its console and its requests at the end."""

    @contextmanager
    def opened(
        *, model: FakeModel | None = None, script: str = "", context_options: Any = None, **settings: Any
    ) -> Iterator[web_page.Visit]:
        model = model or web_page.LoudnessModel()
        with running_api(model, decoders, **settings) as url:
            context = chromium.new_context(**(context_options or {}), permissions=["microphone"])
            context.set_default_timeout(60_000)
            try:
                context.add_init_script(web_page.OBSERVERS + script)
                visit = web_page.Visit(context.new_page(), url, model)
                visit.page.goto(url)
                yield visit
                visit.check()
            finally:
                context.close()

    return opened
