"""Tests of `SandboxPool`: workers survive crashes, hangs and excessive memory use, and end with their parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from lakd_ray.audio import ffmpeg
from lakd_ray.audio.sandbox import SandboxPool
from lakd_ray.errors import ClipError


def allocate_8_gb() -> None:
    np.ones(1 << 30)


def raise_clip_error() -> None:
    raise ClipError("a clip contains no samples", "empty")


def run_ffmpeg_of(folder: str) -> None:
    os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
    ffmpeg.convert_to_wav(b"...", ("mov", "MP4 (M4A)"), source_name="a clip", max_seconds=None)


@pytest.fixture(scope="module")
def pool() -> Iterator[SandboxPool]:
    with SandboxPool(1, memory_mb=256, timeout_s=60.0) as pool:
        yield pool


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (signal.raise_signal, [signal.SIGSEGV], "crashed the decoder"),
        (allocate_8_gb, [], "needs more than 256 MB"),
    ],
)
def test_call_that_breaks_its_worker_raises_and_the_next_call_works(pool, function, arguments, message):
    with pytest.raises(ClipError, match=message):
        pool.call(function, *arguments)
    assert pool.call(abs, -3) == 3


def wait_and_write(file: str) -> None:
    time.sleep(0.3)
    Path(file).write_text(str(os.getpid()))


def test_canceled_call_finishes_and_costs_no_worker(pool, tmp_path):
    async def cancel_calls() -> None:
        for name in "ab":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.call_async(wait_and_write, str(tmp_path / name)), 0.1)

    process = pool.call(os.getpid)
    asyncio.run(cancel_calls())
    assert pool.call(os.getpid) == process
    assert [int((tmp_path / name).read_text()) for name in "ab"] == [process, process]


def test_call_that_hangs_is_ended():
    with SandboxPool(1, timeout_s=0.2) as pool, pytest.raises(ClipError, match=r"not decoded within 0\.2 s"):
        pool.call(time.sleep, 60)


def test_ffmpeg_ends_with_the_worker_that_started_it(tmp_path):
    program, pipe = tmp_path / "ffmpeg", tmp_path / "pipe"
    os.mkfifo(pipe)  # ffmpeg may not write to files
    program.write_text(f"#!/bin/sh\necho $$ > {pipe}\nexec sleep 99\n")
    program.chmod(0o755)
    reader = os.open(pipe, os.O_RDWR)
    try:
        with SandboxPool(1, timeout_s=3.0) as pool, pytest.raises(ClipError, match="not decoded within 3 s"):
            pool.call(run_ffmpeg_of, str(tmp_path))
        with suppress(psutil.NoSuchProcess):
            psutil.Process(int(os.read(reader, 20))).wait(timeout=30)
    finally:
        os.close(reader)


def test_exceptions_of_the_function_are_raised_in_the_caller(pool):
    with pytest.raises(ClipError, match="no samples") as caught:
        pool.call(raise_clip_error)
    assert caught.value.kind == "empty"


def test_workers_end_with_their_parent():
    code = "import os, time; from lakd_ray.audio.sandbox import SandboxPool; "
    code += "print(SandboxPool(1).call(os.getpid), flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        assert worker.is_running() and worker.pid != os.getpid()
        parent.kill()
    worker.wait(timeout=30)
