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
from lakd_ray.audio.pcm import SAMPLE_RATE, Wave, resample, to_float, to_int16
from lakd_ray.errors import ClipError

_SAMPLE_RATE_RANGE = (4_000, 768_000)  # below, seconds of header would become hours of audio
_MAX_CHANNELS = 64
_MAX_RESAMPLING_FILTER_SIZE = (
    20_000_000  # values in the resampling filter: 70 thousand for 44.1 kHz, 256 million (4 GB) for 15,999 Hz
)
_BLOCK_SIZE = 1 << 13  # values decoded at a time
_CLIPPING_THRESHOLD = 0.98  # the loudest that mu-law can say; 8-bit and A-law samples end a little above
_TRUNCATION_TOLERANCE_S = 0.05  # so much may be missing from a file before it counts as truncated
_PLACEHOLDER_SIZE = 0x7FFF_0000  # from here on, sizes in headers are place holders of programs that wrote to a pipe
_TRUNCATED_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_DECODE_ERRORS = (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, MemoryError, OverflowError)


@dataclass(frozen=True)
class Recording:
    """A recording, or the part of one that was asked for.

    Attributes:
        wave_T: 16 kHz mono in [-1, 1), shape [T], rounded to 16 bits.
        cut: it was longer than `max_seconds`.
        clipped: share of its samples, before mixing and resampling, that sit at full scale.
    """

    wave_T: Wave
    is_cut: bool
    clipped_fraction: float


def decode_audio(
    content: bytes,
    *,
    source_name: str,
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
    return decode_recording(content, source_name=source_name, max_seconds=max_seconds, start=start, end=end).wave_T


def decode_recording(
    content: bytes,
    *,
    source_name: str,
    max_seconds: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Recording:
    """Decode a recording and say what was met on the way. Arguments and errors are those of `decode`."""
    begin = start or 0.0
    limit = None if end is None else end - begin
    capped = max_seconds is not None and (limit is None or max_seconds < limit)
    part = _TimeRange(begin, max_seconds if capped else limit, capped)
    if found := ffmpeg.detect_container(content):
        needed = None if part.duration is None else begin + part.duration + 1  # a little more shows whether it was cut
        content = ffmpeg.convert_to_wav(content, found, source_name=source_name, max_seconds=needed)
    try:
        with _SequentialSoundFile(_ClampedBytesIO(content)) as file:
            _check_header(file, source_name)
            rate = int(file.samplerate)
            raw = _read_range(file, part, _is_truncated(file, content), source_name)
    except _DECODE_ERRORS as error:
        said = getattr(error, "error_string", error)  # without the name of the object that was read
        raise ClipError(f"cannot decode {source_name}: {said}; expected WAV, FLAC, OGG or MP3") from None
    wave_T = raw.wave_T if rate == SAMPLE_RATE else resample(raw.wave_T, rate)
    if not np.isfinite(wave_T).all():
        raise ClipError(f"{source_name} holds values that are not finite numbers", "not-finite")
    return Recording(to_float(to_int16(wave_T)), raw.is_cut, raw.clipped_fraction)


@dataclass(frozen=True)
class _TimeRange:
    """Where to begin, how much to read (None: all), and whether that is a limit rather than the part's own end."""

    start: float
    duration: float | None
    truncate: bool


def _check_header(file: Any, source_name: str) -> None:
    """Refuse what a few bytes of header must not cost: hours of work, gigabytes of memory."""
    rate, channels = int(file.samplerate), int(file.channels)
    common = math.gcd(rate, SAMPLE_RATE)
    usual = (
        _SAMPLE_RATE_RANGE[0] <= rate <= _SAMPLE_RATE_RANGE[1]
        and (rate // common) * (SAMPLE_RATE // common) <= _MAX_RESAMPLING_FILTER_SIZE
    )
    if not usual:
        raise ClipError(
            f"{source_name} has a sample rate of {rate} Hz, expected a usual one such as 16000 or 44100", "header"
        )
    if channels > _MAX_CHANNELS:
        raise ClipError(f"{source_name} has {channels} channels, expected at most {_MAX_CHANNELS}", "header")


def _read_range(file: Any, time_range: _TimeRange, is_truncated: bool, source_name: str) -> Recording:
    """The part at its own rate, mixed to mono and not yet checked for values that are no numbers.

    Raises:
        ClipError: nothing is there, less than the header promises, or less than the part needs.
    """
    rate = int(file.samplerate)
    begin = round(time_range.start * rate)
    wanted = None if time_range.duration is None else round(time_range.duration * rate)
    blocks = _BlockReader(file)
    blocks.skip_to(begin)
    wave_T, clipped = blocks.read_mono(wanted)
    if wanted is not None and len(wave_T) >= wanted:
        return Recording(wave_T, time_range.truncate and blocks.has_more(), clipped)
    slack, reached = _TRUNCATION_TOLERANCE_S * rate, begin + len(wave_T)
    promised = int(file.frames) if 0 < file.frames < 2**40 else 0
    if blocks.error is not None and not blocks.frames_read:
        raise blocks.error
    if blocks.error is not None or is_truncated or promised - reached > slack:
        of = f" of {promised / rate:.2f} s" if promised > reached else ""
        raise ClipError(
            f"{source_name} breaks off after {blocks.frames_read / rate:.2f} s{of}: truncated or damaged", "truncated"
        )
    if not blocks.frames_read:
        raise ClipError(f"{source_name} holds no samples", "empty")
    if not len(wave_T) or (not time_range.truncate and wanted is not None and wanted - len(wave_T) > slack):
        raise ClipError(
            f"{source_name} lasts {blocks.frames_read / rate:.2f} s, and the part of it from {time_range.start:g} s"
            f"{'' if time_range.duration is None else f' to {time_range.start + time_range.duration:g} s'} is not there",
            "outside",
        )
    return Recording(wave_T, False, clipped)


class _ClampedBytesIO(io.BytesIO):
    """Stays where it is when a damaged header sends libsndfile to a place before the beginning."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """The new position."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class _SequentialSoundFile(soundfile.SoundFile):  # type: ignore[misc]  # untyped
    """A file that is read from front to back: after every read, soundfile seeks to where a seekable file already is,
    which loses half a frame of an MP3 each time and decodes a FLAC's frames again."""

    def seekable(self) -> bool:
        """No; `can_seek` tells the truth."""
        return False

    @property
    def has_exact_seek(self) -> bool:
        """Whether `seek` goes exactly where it should."""
        return bool(super().seekable()) and self.format != "MP3"


class _BlockReader:
    """Reads a file piece by piece; an error on the way ends the file and is kept."""

    def __init__(self, file: _SequentialSoundFile):
        self._file = file
        self.frames_read = 0  # decoded or skipped so far
        self.error: Exception | None = None

    def skip_to(self, frame: int) -> None:
        """Go to a frame."""
        if 0 < frame <= self._file.frames and self._file.has_exact_seek:
            self.frames_read = int(self._file.seek(frame))
        while self.frames_read < frame and len(self._read_block(frame - self.frames_read)):
            pass

    def read_mono(self, num_frames: int | None) -> tuple[Wave, float]:
        """So many frames, or all: the mean of their channels [T], and the share of values at full scale."""
        parts: list[Wave] = []
        have = loud = 0
        while num_frames is None or have < num_frames:
            block_TC = self._read_block(_BLOCK_SIZE if num_frames is None else num_frames - have)
            if not len(block_TC):
                break
            have += len(block_TC)
            loud += int(np.count_nonzero(np.abs(block_TC) >= _CLIPPING_THRESHOLD))
            with np.errstate(invalid="ignore", over="ignore"):  # what is no number is refused by `read`
                parts.append(block_TC.mean(axis=1, dtype=np.float32))
        wave_T = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return wave_T, loud / max(1, have * self._file.channels)

    def has_more(self) -> bool:
        """Whether anything follows."""
        return len(self._read_block(1)) > 0

    def _read_block(self, max_frames: int) -> Wave:
        max_frames = min(max_frames, max(1, _BLOCK_SIZE // self._file.channels))
        try:
            block_TC = self._file.read(max_frames, dtype="float32", always_2d=True)
        except _DECODE_ERRORS as error:
            self.error = error
            return np.zeros((0, self._file.channels), np.float32)
        self.frames_read += len(block_TC)
        return np.asarray(block_TC, dtype=np.float32)


def _is_truncated(file: Any, content: bytes) -> bool:
    """Whether the file ends before its own structure does; libsndfile then reads what there is without a word."""
    if file.format == "OGG":
        return _is_ogg_truncated(content)
    sizes = _TRUNCATED_CHUNK.search(file.extra_info)
    if sizes is None:
        return False
    promised, there = int(sizes[1]), int(sizes[2])
    missing_s = file.frames * (promised - there) / max(1, there) / file.samplerate
    return promised < _PLACEHOLDER_SIZE and missing_s > _TRUNCATION_TOLERANCE_S


def _is_ogg_truncated(content: bytes) -> bool:
    """Whether the last page lacks some of its bytes. Its header: "OggS", 22 bytes, then the sizes of its segments."""
    at = content.rfind(b"OggS")
    header = content[at : at + 27]
    if at < 0 or len(header) < 27:
        return True
    sizes = content[at + 27 : at + 27 + header[26]]
    return len(sizes) < header[26] or at + 27 + len(sizes) + sum(sizes) > len(content)
