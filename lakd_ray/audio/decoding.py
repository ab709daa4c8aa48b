"""Decode an encoded recording to 16 kHz mono, or raise one error that describes what is wrong with it.

Headers are not trusted. Samples are read block by block, so memory use depends on the samples in the file and not on
its header, and the decoded length is compared with the length in the header. Decoding needs only libsndfile; torchaudio
is loaded when the sample rate is not 16 kHz, and ffmpeg runs only for containers that libsndfile does not read.
"""

import io
import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soundfile

from lakd_ray.audio import ffmpeg
from lakd_ray.audio.pcm import SAMPLE_RATE, Wave, resample, to_float, to_int16
from lakd_ray.errors import ClipError

_SAMPLE_RATE_RANGE = (4_000, 768_000)  # Hz; at lower rates a small file would become hours of audio
_MAX_CHANNELS = 64
# Number of values in the resampling filter: 70 thousand for 44.1 kHz, 256 million (4 GB) for 15,999 Hz.
_MAX_RESAMPLING_FILTER_SIZE = 20_000_000
_BLOCK_SIZE = 1 << 13  # values decoded at a time
_CLIPPING_THRESHOLD = 0.98  # the largest mu-law value; the largest 8-bit and A-law values are slightly higher
_CANCELLATION = 0.1  # power of the mean of channels, relative to independent ones, below which they cancel out
_SIMILAR_POWER = 0.8  # power relative to the loudest channel from which a channel is as good as it
_MIN_POWER = 1e-10  # -100 dB of full scale: rounding errors are below it
_TRUNCATION_TOLERANCE_S = 0.05  # a file that lacks more than this counts as truncated
_PLACEHOLDER_SIZE = 0x7FFF_0000  # programs that write to a pipe leave sizes of this value or more in the header
_TRUNCATED_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_DECODE_ERRORS = (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, MemoryError, OverflowError)


@dataclass(frozen=True)
class Recording:
    """A decoded recording, or the requested part of it.

    Attributes:
        wave_T: 16 kHz mono samples in [-1, 1), shape [T], rounded to 16 bits.
        is_cut: True if the recording was longer than `max_seconds`.
        clipped_fraction: fraction of the samples at full scale, before mixing and resampling.
        channel: number of the channel, from 0, that is used because the channels cancel each other out; None if their
            mean is used.
    """

    wave_T: Wave
    is_cut: bool
    clipped_fraction: float
    channel: int | None = None


def decode_audio(
    content: bytes,
    *,
    source_name: str,
    max_seconds: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Wave:
    """Decode a recording to 16 kHz mono samples; `decode_recording` also returns quality information.

    Args:
        content: an encoded file: WAV, FLAC, OGG, MP3 or any other libsndfile format; M4A, WebM, WMA, AMR with ffmpeg.
        source_name: name of the recording in error messages.
        max_seconds: longer recordings are cut at this duration and not decoded further.
        start: start of the requested part in seconds.
        end: end of the requested part in seconds; only this part is held in memory.

    Returns:
        Samples in [-1, 1), shape [T]. They are rounded to 16 bits, as in the shards, so that serving uses exactly the
        same input as training and evaluation.

    Raises:
        ClipError: the recording cannot be decoded, is empty or truncated, contains non-finite values, has an invalid
            header, or does not cover the requested part.
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
    """Decode a recording and report cutting and clipping; arguments and errors are those of `decode_audio`."""
    begin = start or 0.0
    duration = None if end is None else end - begin
    truncate = max_seconds is not None and (duration is None or max_seconds < duration)
    time_range = _TimeRange(begin, max_seconds if truncate else duration, truncate)
    if container := ffmpeg.detect_container(content):
        # One second more than requested shows whether the recording was cut.
        max_converted = None if time_range.duration is None else begin + time_range.duration + 1
        content = ffmpeg.convert_to_wav(content, container, source_name=source_name, max_seconds=max_converted)
    try:
        raw, rate, channel = _read_file(content, time_range, source_name)
        if channel is not None:
            raw, rate, _ = _read_file(content, time_range, source_name, channel=channel)
    except _DECODE_ERRORS as error:
        # str(error) would contain the repr of the BytesIO object; libsndfile ends its messages with a period
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise ClipError(f"cannot decode {source_name}: {reason}; expected WAV, FLAC, OGG or MP3") from None
    wave_T = raw.wave_T if rate == SAMPLE_RATE else resample(raw.wave_T, rate)
    if not np.isfinite(wave_T).all():
        raise ClipError(f"{source_name} contains values that are not finite numbers", "not-finite")
    return replace(raw, wave_T=to_float(to_int16(wave_T)), channel=channel)


def _read_file(
    content: bytes, time_range: "_TimeRange", source_name: str, channel: int | None = None
) -> tuple[Recording, int, int | None]:
    """Read a time range at the file's own rate; values are not yet checked for being finite.

    Returns:
        The mean of the channels or a single one, the sample rate, and a loud channel if all cancel each other out.
    """
    with _SequentialSoundFile(_ClampedBytesIO(content)) as file:
        _check_header(file, source_name)
        blocks = _BlockReader(file, channel)
        raw = _read_range(blocks, file, time_range, _is_truncated(file, content), source_name)
        return raw, int(file.samplerate), blocks.find_cancelled()


@dataclass(frozen=True)
class _TimeRange:
    """The part of a recording to decode, in seconds."""

    start: float
    duration: float | None
    """None: to the end of the recording."""
    truncate: bool
    """True if `duration` is an upper limit; False if the recording must be at least that long."""


def _check_header(file: Any, source_name: str) -> None:
    """Reject headers whose sample rate or number of channels would cost hours of work or gigabytes of memory."""
    rate, channels = int(file.samplerate), int(file.channels)
    divisor = math.gcd(rate, SAMPLE_RATE)
    is_supported = (
        _SAMPLE_RATE_RANGE[0] <= rate <= _SAMPLE_RATE_RANGE[1]
        and (rate // divisor) * (SAMPLE_RATE // divisor) <= _MAX_RESAMPLING_FILTER_SIZE
    )
    if not is_supported:
        raise ClipError(
            f"{source_name} has a sample rate of {rate} Hz, expected a common rate such as 16000 or 44100", "header"
        )
    if channels > _MAX_CHANNELS:
        raise ClipError(f"{source_name} has {channels} channels, expected at most {_MAX_CHANNELS}", "header")


def _read_range(
    blocks: "_BlockReader", file: Any, time_range: _TimeRange, is_truncated: bool, source_name: str
) -> Recording:
    """Read a time range at the file's own rate, mixed to mono.

    Raises:
        ClipError: the file has no samples, fewer than its header states, or fewer than the range needs.
    """
    rate = int(file.samplerate)
    first_frame = round(time_range.start * rate)
    num_frames = None if time_range.duration is None else round(time_range.duration * rate)
    blocks.skip_to(first_frame)
    wave_T, clipped_fraction = blocks.read_mono(num_frames)
    if num_frames is not None and len(wave_T) >= num_frames:
        return Recording(wave_T, time_range.truncate and blocks.has_more(), clipped_fraction)
    tolerance, end_frame = _TRUNCATION_TOLERANCE_S * rate, first_frame + len(wave_T)
    header_frames = int(file.frames) if 0 < file.frames < 2**40 else 0
    if blocks.error is not None and not blocks.frames_read:
        raise blocks.error
    if blocks.error is not None or is_truncated or header_frames - end_frame > tolerance:
        expected = f" of {header_frames / rate:.2f} s" if header_frames > end_frame else ""
        raise ClipError(
            f"{source_name} ends after {blocks.frames_read / rate:.2f} s{expected}: truncated or damaged", "truncated"
        )
    if not blocks.frames_read:
        raise ClipError(f"{source_name} contains no samples", "empty")
    if not len(wave_T) or (not time_range.truncate and num_frames is not None and num_frames - len(wave_T) > tolerance):
        end = "" if time_range.duration is None else f" to {time_range.start + time_range.duration:g} s"
        raise ClipError(
            f"{source_name} lasts {blocks.frames_read / rate:.2f} s and does not contain the requested part from "
            f"{time_range.start:g} s{end}",
            "outside",
        )
    return Recording(wave_T, False, clipped_fraction)


class _ClampedBytesIO(io.BytesIO):
    """A BytesIO that ignores a seek to before its start, which a damaged header makes libsndfile request."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to the offset if it is valid and return the current position."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class _SequentialSoundFile(soundfile.SoundFile):  # type: ignore[misc]  # untyped
    """A SoundFile that is read sequentially.

    After every read, soundfile seeks a seekable file to its current position. That loses half a frame of an MP3 each
    time and decodes frames of a FLAC again, so this class reports that it is not seekable.
    """

    def seekable(self) -> bool:
        """Return False, whatever the format; see `has_exact_seek`."""
        return False

    @property
    def has_exact_seek(self) -> bool:
        """Whether `seek` moves to exactly the requested frame."""
        return bool(super().seekable()) and self.format != "MP3"


class _BlockReader:
    """Reads a file block by block; a decoding error counts as the end of the file and is stored in `error`.

    Args:
        file: the file.
        channel: the channel to read; the mean of all if None.
    """

    def __init__(self, file: _SequentialSoundFile, channel: int | None = None):
        self._file, self._channel = file, channel
        self._statistics = _ChannelStatistics(int(file.channels))
        self.frames_read = 0  # including skipped frames
        self.error: Exception | None = None

    def skip_to(self, frame: int) -> None:
        """Seek to a frame, or decode up to it where seeking is not exact."""
        if 0 < frame <= self._file.frames and self._file.has_exact_seek:
            self.frames_read = int(self._file.seek(frame))
        while self.frames_read < frame and len(self._read_block(frame - self.frames_read)):
            pass

    def read_mono(self, num_frames: int | None) -> tuple[Wave, float]:
        """Read `num_frames` frames, or all if None.

        Returns:
            The mean over channels or the selected one, shape [T], and the fraction of values at full scale.
        """
        blocks: list[Wave] = []
        num_read = num_clipped = 0
        while num_frames is None or num_read < num_frames:
            block_TC = self._read_block(_BLOCK_SIZE if num_frames is None else num_frames - num_read)
            if not len(block_TC):
                break
            num_read += len(block_TC)
            num_clipped += int(np.count_nonzero(np.abs(block_TC) >= _CLIPPING_THRESHOLD))
            with np.errstate(invalid="ignore", over="ignore"):  # `decode_recording` rejects non-finite values
                mean_T = block_TC.mean(axis=1, dtype=np.float32)
                self._statistics.add(block_TC, mean_T)
                blocks.append(mean_T if self._channel is None else block_TC[:, self._channel].copy())
        wave_T = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        return wave_T, num_clipped / max(1, num_read * self._file.channels)

    def find_cancelled(self) -> int | None:
        """Return a loud channel if the channels cancel each other out in their mean; otherwise None."""
        return self._statistics.find_cancelled()

    def has_more(self) -> bool:
        """Return whether at least one more frame follows."""
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


class _ChannelStatistics:
    """Sums over the samples of each channel and of their mean, to detect channels of opposite polarity.

    A balanced line that was recorded as stereo, or a headset with a swapped wire, has the same signal in both channels
    with opposite signs. Its mean is silence.
    """

    def __init__(self, channels: int):
        self._channels = channels
        self._num_frames = 0
        self._sums_C1 = np.zeros(channels + 1)  # the last element is the mean
        self._squares_C1 = np.zeros(channels + 1)

    def add(self, block_TC: Wave, mean_T: Wave) -> None:
        """Add samples and their mean over channels."""
        if self._channels == 1:
            return
        self._num_frames += len(block_TC)
        values_TC1 = np.concatenate([block_TC, mean_T[:, None]], axis=1, dtype=np.float64)
        self._sums_C1 += values_TC1.sum(axis=0)
        self._squares_C1 += np.square(values_TC1).sum(axis=0)

    def find_cancelled(self) -> int | None:
        """Return a channel if the mean is far quieter than that of independent channels; otherwise None.

        It is the first one that is about as loud as the loudest.

        Independent channels of power P have a mean of power P / C; so has a single channel with signal, of which P is
        the mean over channels.
        """
        if not self._num_frames:
            return None
        with np.errstate(invalid="ignore", over="ignore"):  # non-finite values compare as false
            power_C1 = self._squares_C1 / self._num_frames - np.square(self._sums_C1 / self._num_frames)
            power_C, mixed = power_C1[:-1], power_C1[-1]
            power = power_C.mean()
            is_cancelled = power > _MIN_POWER and mixed < _CANCELLATION * power / self._channels
        return int(np.argmax(power_C >= _SIMILAR_POWER * power_C.max())) if is_cancelled else None


def _is_truncated(file: Any, content: bytes) -> bool:
    """Return whether the file is shorter than its chunk sizes or pages state; libsndfile reads it without an error."""
    if file.format == "OGG":
        return _is_ogg_truncated(content)
    sizes = _TRUNCATED_CHUNK.search(file.extra_info)
    if sizes is None:
        return False
    stated, actual = int(sizes[1]), int(sizes[2])
    missing_s = file.frames * (stated - actual) / max(1, actual) / file.samplerate
    return stated < _PLACEHOLDER_SIZE and missing_s > _TRUNCATION_TOLERANCE_S


def _is_ogg_truncated(content: bytes) -> bool:
    """Return whether the last page is incomplete.

    A page has a header of 27 bytes ("OggS", 22 bytes, the number of segments), the segment sizes, and the segments.
    """
    page = content.rfind(b"OggS")
    header = content[page : page + 27]
    if page < 0 or len(header) < 27:
        return True
    sizes = content[page + 27 : page + 27 + header[26]]
    return len(sizes) < header[26] or page + 27 + len(sizes) + sum(sizes) > len(content)
