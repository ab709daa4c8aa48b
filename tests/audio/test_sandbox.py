"""Processes that may die over a recording: what they survive, and that they do not outlive who asked."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest

from lakd_ray.audio import ffmpeg
from lakd_ray.audio.sandbox import SandboxPool
from lakd_ray.errors import ClipError


def devour() -> None:
    np.ones(1 << 30)


def refuse() -> None:
    raise ClipError("a clip holds no samples", "empty")


def ask_ffmpeg(folder: str) -> None:
    """The one in a folder."""
    os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
    ffmpeg.convert_to_wav(b"...", ("mov", "MP4 (M4A)"), source_name="a clip", max_seconds=None)


@pytest.fixture(scope="module")
def apart():
    with SandboxPool(1, memory_mb=256, timeout_s=60.0) as one:
        yield one


@pytest.mark.parametrize(
    ("fault", "argument", "words"),
    [
        (signal.raise_signal, signal.SIGSEGV, "its decoder broke down over it"),
        (devour, None, "needs more than 256 MB"),
    ],
)
def test_what_breaks_a_process_is_refused_and_the_next_one_answered(apart, fault, argument, words):
    with pytest.raises(ClipError, match=words):
        apart.call(fault, *([] if argument is None else [argument]))
    assert apart.call(abs, -3) == 3


def test_whoever_stops_waiting_ends_the_call(apart):
    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(apart.call_async(time.sleep, 60), 0.2)
        assert await apart.call_async(abs, -3) == 3

    process = apart.call(os.getpid)
    asyncio.run(give_up())
    assert apart.call(os.getpid) != process, "it slept on, and the next call waited for its deadline"


def test_what_hangs_is_ended():
    with SandboxPool(1, timeout_s=0.2) as apart, pytest.raises(ClipError, match=r"not decoded within 0\.2 s"):
        apart.call(time.sleep, 60)


def test_the_ffmpeg_that_it_waits_for_is_ended_with_it(tmp_path):
    program, told = tmp_path / "ffmpeg", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {told}\nexec sleep 99\n")
    program.chmod(0o755)
    with SandboxPool(1, timeout_s=3.0) as apart, pytest.raises(ClipError, match="not decoded within 3 s"):
        apart.call(ask_ffmpeg, str(tmp_path))
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(told.read_text())).wait(timeout=30)


def test_what_a_function_raises_is_raised_here(apart):
    with pytest.raises(ClipError, match="no samples") as caught:
        apart.call(refuse)
    assert caught.value.kind == "empty"


def test_processes_end_with_the_one_that_asked():
    code = "import os, time; from lakd_ray.audio.sandbox import SandboxPool; "
    code += "print(SandboxPool(1).call(os.getpid), flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        process = psutil.Process(int(asking.stdout.readline()))
        assert process.is_running() and process.pid != os.getpid()
        asking.kill()
    process.wait(timeout=30)
