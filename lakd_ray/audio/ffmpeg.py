"""Containers that libsndfile does not read (M4A, WebM, WMA, AMR ...), through the `ffmpeg` program where there is one.

Recordings come from strangers, so ffmpeg is told what the container is, by its first bytes: it never guesses, and so
never opens a playlist that names other files. It may read nothing but the file it is given, for a bounded time.
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
_MAX_OUTPUT_BYTES = 1 << 30  # of what it writes
_MAX_ALLOC = 256 << 20  # largest single allocation
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_LOG_NOISE = re.compile(r"\[[^]]* @ 0x[0-9a-f]+\] |/\S*/lakd-ffmpeg-\w+/")  # addresses and temporary names

# First bytes (offset, bytes) -> the name that ffmpeg gives the container, and the one that people know.
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
    """ffmpeg's name and people's name of a container that only ffmpeg reads; None for everything else."""
    for offset, magic, demuxer, name in _CONTAINERS:
        if content[offset : offset + len(magic)] == magic:
            return demuxer, name
    return None


def convert_to_wav(content: bytes, container: tuple[str, str], *, source_name: str, max_seconds: float | None) -> bytes:
    """The first sound track as 16-bit WAV, at its own rate and with its own channels.

    Args:
        found: what `container` said.
        seconds: decode no more than the first of it. A part further on is cut from the result: where ffmpeg itself
            goes to a time, it is a frame or two off in some containers.

    Raises:
        ClipError: ffmpeg is not installed (`needs-ffmpeg`), or cannot decode it (`undecodable`).
    """
    demuxer, name = container
    program = shutil.which("ffmpeg")
    if program is None:
        raise ClipError(
            f"cannot decode {source_name}: {name} needs ffmpeg, which is not installed. Install it on every machine (Debian: "
            "apt-get install ffmpeg), or convert the recording to WAV or FLAC",
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
                f"cannot decode {source_name}: it is more than {_MAX_OUTPUT_BYTES >> 20} MB of samples", "header"
            )
        return target.read_bytes()


def _run_ffmpeg(command: list[str], source_name: str, container_name: str) -> None:
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            preexec_fn=_set_parent_death_signal,
        )
    except subprocess.TimeoutExpired:
        raise ClipError(f"cannot decode {source_name}: ffmpeg was not done with it after {_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        said = _LOG_NOISE.sub("", lines[0])[:200]
        raise ClipError(f"cannot decode {source_name} ({container_name}): ffmpeg says {said!r}")


def _set_parent_death_signal() -> None:
    """In ffmpeg's process: a decoder that is killed, for it took too long or too much, takes its ffmpeg with it.

    One system call, of a library that is loaded already: safe between fork and exec, in processes with threads too.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
