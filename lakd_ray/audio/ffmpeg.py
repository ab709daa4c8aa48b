"""Convert containers that libsndfile does not read (M4A, WebM, WMA, AMR ...) with the `ffmpeg` program, if installed.

Recordings are untrusted input. The container is detected from its first bytes and passed to ffmpeg, which therefore
never probes the format and never opens a playlist that refers to other files. ffmpeg may read only the input file, and
its run time, output size and allocations are limited.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from lakd_ray.errors import ClipError

_TIMEOUT_S = 120.0
_MAX_OUTPUT_BYTES = 1 << 30
_MAX_ALLOC = 256 << 20  # bytes in a single allocation
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_LOG_NOISE = re.compile(r"\[[^]]* @ 0x[0-9a-f]+\] |/\S*/lakd-ffmpeg-\w+/")  # addresses and temporary names

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
    with tempfile.TemporaryDirectory(prefix="lakd-ffmpeg-") as folder:  # not a pipe: MP4 may need seeking
        source, target = Path(folder, "in"), Path(folder, "out.wav")
        source.write_bytes(content)
        command = [program, "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror", "-threads", "1"]
        command += ["-max_alloc", str(_MAX_ALLOC), "-protocol_whitelist", "file", "-f", demuxer, "-i", str(source)]
        command += ["-map", "0:a:0", *([] if max_seconds is None else ["-t", f"{max_seconds:.6f}"])]
        command += ["-c:a", "pcm_s16le", "-fs", str(_MAX_OUTPUT_BYTES), "-f", "wav", str(target)]
        _run_ffmpeg(command, source_name, name)
        if target.stat().st_size > _MAX_OUTPUT_BYTES - (1 << 20):
            raise ClipError(
                f"cannot decode {source_name}: it has more than {_MAX_OUTPUT_BYTES >> 20} MB of samples", "header"
            )
        return target.read_bytes()


def _run_ffmpeg(command: list[str], source_name: str, container_name: str) -> None:
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
    try:
        process = subprocess.run(
            command,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            preexec_fn=_set_parent_death_signal,
        )
    except subprocess.TimeoutExpired:
        raise ClipError(f"cannot decode {source_name}: ffmpeg did not finish within {_TIMEOUT_S:g} s") from None
    if process.returncode != 0:
        lines = process.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
        reason = _LOG_NOISE.sub("", lines[0])[:200]
        raise ClipError(f"cannot decode {source_name} ({container_name}): ffmpeg reports {reason!r}")


def _set_parent_death_signal() -> None:
    """Make the kernel kill ffmpeg when the process that started it is killed (for exceeding its time or memory).

    Runs in the child. It is one system call of a library that is already loaded, so it is safe between fork and exec
    even if the parent has threads.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
