"""Convert containers that libsndfile does not read (M4A, WebM, WMA, AMR ...) with the `ffmpeg` program, if installed.

Recordings are untrusted input. The container is detected from its first bytes and passed to ffmpeg, which therefore
never probes the format and never opens a playlist that refers to other files. ffmpeg reads the recording from memory
and writes samples to a pipe, so no file exists that a killed process could leave behind. Its memory, run time, output
and allocations are limited, and the kernel kills it with the process that started it.
"""

import ctypes
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lakd_ray.errors import ClipError

WAV_HEADER_BYTES = 44
_TIMEOUT_S = 120.0
_MAX_OUTPUT_BYTES = 1 << 30
_MAX_MEMORY_BYTES = 2 << 30  # address space of the process, of which its threads reserve a part without using it
_MAX_ALLOC = 256 << 20  # bytes in a single allocation
_MAX_OPEN_FILES = 32
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_LOG_NOISE = re.compile(r"\[[^]]* @ 0x[0-9a-f]+\] |/proc/self/fd/\d+: ")  # addresses and the name of the input
_COMMON_OPTIONS = ("-nostdin", "-hide_banner", "-loglevel", "error", "-threads", "1", "-max_alloc", str(_MAX_ALLOC))

# Offset and magic bytes of a container, ffmpeg's name of its demuxer, and its common name.
_CONTAINERS = (
    (4, b"ftyp", "mov", "MP4 (M4A)"),
    (0, b"\x1aE\xdf\xa3", "matroska", "WebM or Matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf", "WMA"),
    (0, b"#!AMR", "amr", "AMR"),
    (0, b"\xff\xf1", "aac", "AAC"),
    (0, b"\xff\xf9", "aac", "AAC"),
    (0, b"wvpk", "wv", "WavPack"),
    (0, b"MAC ", "ape", "Monkey's Audio"),
)


def detect_container(content: bytes) -> tuple[str, str] | None:
    """Return the demuxer and the common name of a container that only ffmpeg reads; None for any other content."""
    for offset, magic, demuxer, name in _CONTAINERS:
        if content[offset : offset + len(magic)] == magic:
            return demuxer, name
    return None


def convert_to_wav(content: bytes, container: tuple[str, str], *, source_name: str, max_seconds: float | None) -> bytes:
    """Convert the first audio track to 16-bit WAV at its own rate and with its own channels.

    Args:
        content: the encoded recording.
        container: demuxer and common name, as returned by `detect_container`.
        source_name: name of the recording in error messages.
        max_seconds: decode only this much from the start. Callers cut a later part from the result, because ffmpeg's
            own seeking is off by a frame or two in some containers.

    Raises:
        ClipError: ffmpeg is not installed (`needs-ffmpeg`), or cannot decode the recording (`undecodable`).
    """
    demuxer, name = container
    program = shutil.which("ffmpeg")
    if program is None:
        raise ClipError(
            f"cannot decode {source_name}: {name} needs ffmpeg, which is not installed. Install it on every machine "
            "(Debian: apt-get install ffmpeg), or convert the recording to WAV or FLAC",
            "needs-ffmpeg",
        )
    with _open_in_memory(content) as file:  # not a pipe: MP4 may need seeking
        command = [program, *_COMMON_OPTIONS, "-xerror", "-protocol_whitelist", "file", "-f", demuxer]
        command += ["-i", f"/proc/self/fd/{file}", "-map", "0:a:0"]
        command += [] if max_seconds is None else ["-t", f"{max_seconds:.6f}"]
        command += ["-c:a", "pcm_s16le", "-fs", str(_MAX_OUTPUT_BYTES), "-f", "wav", "pipe:1"]
        output = _run_ffmpeg(command, file, source_name, name)
    if len(output) > _MAX_OUTPUT_BYTES - (1 << 20):
        raise ClipError(
            f"cannot decode {source_name}: it has more than {_MAX_OUTPUT_BYTES >> 20} MB of samples", "header"
        )
    return output


def webm_stream_command(program: str, sample_rate: int) -> list[str]:
    """Return the command that decodes WebM from standard input to a WAV stream of 16-bit samples on standard output.

    It has one or two channels, which `lakd_ray.audio.decoding` mixes, and a header of `WAV_HEADER_BYTES`.
    """
    command = [program, *_COMMON_OPTIONS, "-protocol_whitelist", "pipe", "-f", "matroska", "-i", "pipe:0"]
    command += ["-map", "0:a:0", "-af", "aformat=channel_layouts=mono|stereo", "-ar", str(sample_rate)]
    return [*command, "-c:a", "pcm_s16le", "-bitexact", "-f", "wav", "-flush_packets", "1", "pipe:1"]


def num_wav_channels(header: bytes) -> int:
    """Return the number of channels in the header of a WAV stream."""
    return int.from_bytes(header[22:24], "little")


def sandbox_options(cpu_seconds: float | None = None) -> dict[str, Any]:
    """Return the options of `subprocess.Popen` that confine ffmpeg: limits, no environment, and no life of its own.

    Args:
        cpu_seconds: limit of its CPU time; None: the caller sets all limits by `limit_process`.
    """
    return {"env": {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}, "preexec_fn": _confine_child(cpu_seconds)}


def limit_process(pid: int, cpu_seconds: float) -> None:
    """Limit the memory, CPU time, files and output of a process that runs ffmpeg.

    asyncio's processes need this before their first input instead of limits between fork and exec: uvloop calls their
    `preexec_fn` before the handlers that other libraries run in a forked child, and those of gRPC, which Ray loads,
    crash if they cannot open files.

    Args:
        pid: the process; 0: this one.
        cpu_seconds: limit of its CPU time.
    """
    limits = (
        (resource.RLIMIT_AS, _MAX_MEMORY_BYTES),
        (resource.RLIMIT_CPU, round(cpu_seconds) + 1),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_FSIZE, 0),  # it writes to pipes only
        (resource.RLIMIT_CORE, 0),
    )
    for kind, limit in limits:
        hard = resource.prlimit(pid, kind)[1]
        lowest = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.prlimit(pid, kind, (lowest, lowest))


@contextmanager
def _open_in_memory(content: bytes) -> Iterator[int]:
    """Return the descriptor of a file without a name, which the kernel frees with the last process that has it open."""
    file = os.memfd_create("recording")
    try:
        with open(file, "wb", closefd=False) as writer:
            writer.write(content)
        yield file
    finally:
        os.close(file)


def _run_ffmpeg(command: list[str], file: int, source_name: str, container_name: str) -> bytes:
    try:
        process = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=(file,),
            timeout=_TIMEOUT_S,
            **sandbox_options(_TIMEOUT_S),
        )
    except subprocess.TimeoutExpired:
        raise ClipError(f"cannot decode {source_name}: ffmpeg did not finish within {_TIMEOUT_S:g} s") from None
    if process.returncode != 0:
        lines = process.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
        reason = _LOG_NOISE.sub("", lines[0])[:200]
        raise ClipError(f"cannot decode {source_name} ({container_name}): ffmpeg reports {reason!r}")
    output: bytes = process.stdout
    return output


def _confine_child(cpu_seconds: float | None) -> Callable[[], None]:
    """Return the function that limits ffmpeg, and makes the kernel kill it with the process that started it.

    The function runs in the child between fork and exec. It is a few system calls of libraries that are already loaded,
    so it is safe even if the parent has threads.
    """
    parent = os.getpid()

    def confine() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the line above
            os._exit(1)
        if cpu_seconds is not None:
            limit_process(0, cpu_seconds)

    return confine
