"""The door itself: bytes of a recording in, 16 kHz mono out, or one error that says what is wrong with it.

Headers are claims. Samples are read block by block, so memory follows what a file holds and not what it promises, and
what it promised is compared with what came. Decoding needs libsndfile alone; torchaudio is loaded only when a recording
has another rate than 16 kHz, and ffmpeg is run only for containers that libsndfile does not read.
"""

import io
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from lakd_ray.audio import ffmpeg
from lakd_ray.audio.samples import SAMPLE_RATE, Wave, resample, to_float, to_int16
from lakd_ray.errors import ClipError

_RATES = (4_000, 768_000)  # below, seconds of header would become hours of audio
_MAX_CHANNELS = 64
_MAX_FILTER = 20_000_000  # values in the resampling filter: 70 thousand for 44.1 kHz, 256 million (4 GB) for 15,999 Hz
_BLOCK = 1 << 13  # values decoded at a time
_FULL_SCALE = 0.98  # the loudest that mu-law can say; 8-bit and A-law samples end a little above
_SLACK_S = 0.05  # so much may be missing from a file before it counts as truncated
_UNKNOWN_SIZE = 0x7FFF_0000  # from here on, sizes in headers are place holders of programs that wrote to a pipe
_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_ERRORS = (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, MemoryError, OverflowError)


@dataclass(frozen=True)
class Recording:
    """A recording, or the part of one that was asked for.

    Attributes:
        wave_T: 16 kHz mono in [-1, 1), shape [T], rounded to 16 bits.
        cut: it was longer than `max_seconds`.
        clipped: share of its samples, before mixing and resampling, that sit at full scale.
    """

    wave_T: Wave
    cut: bool
    clipped: float


def decode(
    content: bytes,
    *,
    where: str,
    max_seconds: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Wave:
    """Decode a recording to 16 kHz mono; `read` tells more about it.

    Args:
        content: an encoded file: WAV, FLAC, OGG, MP3 and what else libsndfile reads; M4A, WebM, WMA, AMR with ffmpeg.
        where: names the recording in errors.
        max_seconds: longer recordings are cut here, before they are decoded further.
        start, end: the part of the recording, in seconds; only that part is kept in memory.

    Returns:
        Samples in [-1, 1), shape [T], rounded to 16 bits: what a model is asked about when it serves is then exactly
        what it was trained and evaluated on.

    Raises:
        ClipError: it cannot be decoded, is empty or truncated, holds values that are not numbers, has an absurd
            header, or ends before the part begins or ends.
    """
    return read(content, where=where, max_seconds=max_seconds, start=start, end=end).wave_T


def read(
    content: bytes,
    *,
    where: str,
    max_seconds: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Recording:
    """Decode a recording and say what was met on the way. Arguments and errors are those of `decode`."""
    begin = start or 0.0
    limit = None if end is None else end - begin
    capped = max_seconds is not None and (limit is None or max_seconds < limit)
    part = _Part(begin, max_seconds if capped else limit, capped)
    if found := ffmpeg.container(content):
        needed = None if part.seconds is None else begin + part.seconds + 1  # a little more shows whether it was cut
        content = ffmpeg.to_wav(content, found, where=where, seconds=needed)
    try:
        with _Forward(_Bytes(content)) as file:
            _check_header(file, where)
            rate = int(file.samplerate)
            raw = _read_part(file, part, _is_broken_off(file, content), where)
    except _ERRORS as error:
        said = getattr(error, "error_string", error)  # without the name of the object that was read
        raise ClipError(f"cannot decode {where}: {said}; expected WAV, FLAC, OGG or MP3") from None
    wave_T = raw.wave_T if rate == SAMPLE_RATE else resample(raw.wave_T, rate)
    if not np.isfinite(wave_T).all():
        raise ClipError(f"{where} holds values that are not finite numbers", "not-finite")
    return Recording(to_float(to_int16(wave_T)), raw.cut, raw.clipped)


@dataclass(frozen=True)
class _Part:
    """Where to begin, how much to read (None: all), and whether that is a limit rather than the part's own end."""

    begin: float
    seconds: float | None
    capped: bool


def _check_header(file: Any, where: str) -> None:
    """Refuse what a few bytes of header must not cost: hours of work, gigabytes of memory."""
    rate, channels = int(file.samplerate), int(file.channels)
    common = math.gcd(rate, SAMPLE_RATE)
    usual = _RATES[0] <= rate <= _RATES[1] and (rate // common) * (SAMPLE_RATE // common) <= _MAX_FILTER
    if not usual:
        raise ClipError(
            f"{where} has a sample rate of {rate} Hz, expected a usual one such as 16000 or 44100", "header"
        )
    if channels > _MAX_CHANNELS:
        raise ClipError(f"{where} has {channels} channels, expected at most {_MAX_CHANNELS}", "header")


def _read_part(file: Any, part: _Part, broken_off: bool, where: str) -> Recording:
    """The part at its own rate, mixed to mono and not yet checked for values that are no numbers.

    Raises:
        ClipError: nothing is there, less than the header promises, or less than the part needs.
    """
    rate = int(file.samplerate)
    begin = round(part.begin * rate)
    wanted = None if part.seconds is None else round(part.seconds * rate)
    blocks = _Blocks(file)
    blocks.skip(begin)
    wave_T, clipped = blocks.mono(wanted)
    if wanted is not None and len(wave_T) >= wanted:
        return Recording(wave_T, part.capped and blocks.go_on(), clipped)
    slack, reached = _SLACK_S * rate, begin + len(wave_T)
    promised = int(file.frames) if 0 < file.frames < 2**40 else 0
    if blocks.error is not None and not blocks.frames:
        raise blocks.error
    if blocks.error is not None or broken_off or promised - reached > slack:
        of = f" of {promised / rate:.2f} s" if promised > reached else ""
        raise ClipError(f"{where} breaks off after {blocks.frames / rate:.2f} s{of}: truncated or damaged", "truncated")
    if not blocks.frames:
        raise ClipError(f"{where} holds no samples", "empty")
    if not len(wave_T) or (not part.capped and wanted is not None and wanted - len(wave_T) > slack):
        raise ClipError(
            f"{where} lasts {blocks.frames / rate:.2f} s, and the part of it from {part.begin:g} s"
            f"{'' if part.seconds is None else f' to {part.begin + part.seconds:g} s'} is not there",
            "outside",
        )
    return Recording(wave_T, False, clipped)


class _Bytes(io.BytesIO):
    """Stays where it is when a damaged header sends libsndfile to a place before the beginning."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """The new position."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class _Forward(soundfile.SoundFile):  # type: ignore[misc]  # untyped
    """A file that is read from front to back: after every read, soundfile seeks to where a seekable file already is,
    which loses half a frame of an MP3 each time and decodes a FLAC's frames again."""

    def seekable(self) -> bool:
        """No; `can_seek` tells the truth."""
        return False

    @property
    def can_seek(self) -> bool:
        """Whether `seek` goes exactly where it should."""
        return bool(super().seekable()) and self.format != "MP3"


class _Blocks:
    """Reads a file piece by piece; an error on the way ends the file and is kept."""

    def __init__(self, file: _Forward):
        self._file = file
        self.frames = 0  # decoded or skipped so far
        self.error: Exception | None = None

    def skip(self, frames: int) -> None:
        """Go to a frame."""
        if 0 < frames <= self._file.frames and self._file.can_seek:
            self.frames = int(self._file.seek(frames))
        while self.frames < frames and len(self._next(frames - self.frames)):
            pass

    def mono(self, wanted: int | None) -> tuple[Wave, float]:
        """So many frames, or all: the mean of their channels [T], and the share of values at full scale."""
        parts: list[Wave] = []
        have = loud = 0
        while wanted is None or have < wanted:
            block_TC = self._next(_BLOCK if wanted is None else wanted - have)
            if not len(block_TC):
                break
            have += len(block_TC)
            loud += int(np.count_nonzero(np.abs(block_TC) >= _FULL_SCALE))
            with np.errstate(invalid="ignore", over="ignore"):  # what is no number is refused by `read`
                parts.append(block_TC.mean(axis=1, dtype=np.float32))
        wave_T = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return wave_T, loud / max(1, have * self._file.channels)

    def go_on(self) -> bool:
        """Whether anything follows."""
        return len(self._next(1)) > 0

    def _next(self, frames: int) -> Wave:
        frames = min(frames, max(1, _BLOCK // self._file.channels))
        try:
            block_TC = self._file.read(frames, dtype="float32", always_2d=True)
        except _ERRORS as error:
            self.error = error
            return np.zeros((0, self._file.channels), np.float32)
        self.frames += len(block_TC)
        return np.asarray(block_TC, dtype=np.float32)


def _is_broken_off(file: Any, content: bytes) -> bool:
    """Whether the file ends before its own structure does; libsndfile then reads what there is without a word."""
    if file.format == "OGG":
        return _ogg_is_broken_off(content)
    sizes = _SHORT_CHUNK.search(file.extra_info)
    if sizes is None:
        return False
    promised, there = int(sizes[1]), int(sizes[2])
    missing_s = file.frames * (promised - there) / max(1, there) / file.samplerate
    return promised < _UNKNOWN_SIZE and missing_s > _SLACK_S


def _ogg_is_broken_off(content: bytes) -> bool:
    """Whether the last page lacks some of its bytes. Its header: "OggS", 22 bytes, then the sizes of its segments."""
    at = content.rfind(b"OggS")
    header = content[at : at + 27]
    if at < 0 or len(header) < 27:
        return True
    sizes = content[at + 27 : at + 27 + header[26]]
    return len(sizes) < header[26] or at + 27 + len(sizes) + sum(sizes) > len(content)
