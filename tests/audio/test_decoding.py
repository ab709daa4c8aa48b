"""Tests of decoding: formats, sample rates, time ranges, and recordings that are rejected."""

import io
import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lakd_ray.audio import (
    SAMPLE_RATE,
    decode_audio,
    decode_flac,
    decode_recording,
    encode_flac,
    resample,
    to_float,
    to_int16,
)
from lakd_ray.errors import ClipError, DataError

FORMATS = ("WAV", "FLAC", "OGG", "MP3")


def sine(seconds: float = 1.0, rate: int = SAMPLE_RATE, pitch: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


def encode(samples: np.ndarray, rate: int = SAMPLE_RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def pitch_of(wave_T: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(wave_T * np.hanning(len(wave_T))))
    return float(spectrum.argmax()) * SAMPLE_RATE / len(wave_T)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("format", FORMATS)
def test_formats_and_rates(format, rate):
    wave_T = decode_audio(encode(sine(1.0, rate), rate, format), source_name="a clip")
    assert wave_T.dtype == np.float32 and wave_T.ndim == 1
    slack = 0.15 if format == "MP3" else 0.001  # MP3 pads to complete frames
    assert len(wave_T) / SAMPLE_RATE == pytest.approx(1.0, abs=slack)
    assert pitch_of(wave_T) == pytest.approx(440, abs=2)
    middle_T = wave_T[4_000:12_000]
    assert np.sqrt(np.square(middle_T).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_resampling_does_not_alias():
    wave_T = resample(sine(1.0, 48_000, pitch=11_000).astype(np.float32), 48_000)
    assert np.abs(wave_T[1_000:-1_000]).max() < 0.005  # an alias would be at 5 kHz


def test_16_bit_samples_are_preserved_exactly():
    samples_T = np.arange(-32768, 32768).astype(np.int16)
    for format in ("WAV", "FLAC"):
        wave_T = decode_audio(encode(samples_T, format=format), source_name="a clip")
        np.testing.assert_array_equal(wave_T, samples_T / 32768)
        np.testing.assert_array_equal(to_int16(wave_T), samples_T)
    np.testing.assert_array_equal(decode_flac(encode_flac(samples_T)), samples_T)
    np.testing.assert_array_equal(to_int16(to_float(samples_T)), samples_T)


def test_finer_samples_are_rounded_to_16_bits():
    wave_T = decode_audio(encode(sine() + 1e-6, subtype="FLOAT"), source_name="a clip")
    np.testing.assert_array_equal(wave_T * 32768, np.rint(wave_T * 32768))
    np.testing.assert_allclose(wave_T, sine() + 1e-6, rtol=0, atol=0.6 / 32768)


def test_samples_beyond_full_scale_are_clipped():
    wave_T = decode_audio(encode(np.array([2.0, -2.0, 1.0, 0.0]), subtype="FLOAT"), source_name="a clip")
    np.testing.assert_array_equal(wave_T, [32767 / 32768, -1, 32767 / 32768, 0])


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_averaged(channels):
    loud_T = (1000 * np.random.default_rng(0).standard_normal(1_600)).astype(np.int16)
    samples_TC = np.zeros((1_600, channels), dtype=np.int16)
    samples_TC[:, 0] = loud_T
    wave_T = decode_audio(encode(samples_TC), source_name="a clip")
    np.testing.assert_allclose(wave_T, loud_T / channels / 32768, rtol=0, atol=0.51 / 32768)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("format", FORMATS)
def test_recordings_are_cut_at_the_limit(format, rate):
    content = encode(sine(2.0, rate), rate, format)
    cut_T = decode_audio(content, source_name="a clip", max_seconds=0.75)
    full_T = decode_audio(content, source_name="a clip")
    assert len(cut_T) == pytest.approx(12_000, abs=1)
    np.testing.assert_allclose(cut_T[:11_900], full_T[:11_900], atol=2 / 32768)
    np.testing.assert_array_equal(decode_audio(content, source_name="a clip", max_seconds=10.0), full_T)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 1])
def test_non_finite_values_are_rejected(value, channel):
    samples_TC = np.zeros((100, 2), dtype=np.float32)
    samples_TC[50, channel] = value
    with pytest.raises(DataError, match="clip 7 contains values that are not finite"):
        decode_audio(encode(samples_TC, subtype="FLOAT"), source_name="clip 7")


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG"])
def test_recordings_without_samples_are_rejected(format):
    with pytest.raises(DataError, match="clip 7"):
        decode_audio(encode(np.zeros(0), format=format), source_name="clip 7")


@pytest.mark.parametrize("content", [b"", b"\0", b"RIFF", b"ID3", b"fLaC", b"OggS", b"not audio" * 100, bytes(5_000)])
def test_content_that_is_not_audio_is_rejected(content):
    with pytest.raises(DataError, match=r"cannot decode clip 7: .*; expected WAV, FLAC, OGG or MP3"):
        decode_audio(content, source_name="clip 7")


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_recordings_are_rejected_or_decoded_to_their_beginning(format):
    content = encode(sine(), format=format)
    full_T = decode_audio(content, source_name="a clip")
    for fraction in (0.01, 0.3, 0.6, 0.95):
        try:
            part_T = decode_audio(content[: int(fraction * len(content))], source_name="a clip")
        except DataError:
            continue
        assert len(part_T) <= len(full_T)
        length = np.flatnonzero(part_T)[-1] + 1  # decoders may replace the missing part by silence
        compared = max(0, min(length, len(part_T)) - 2_000)
        np.testing.assert_allclose(part_T[:compared], full_T[:compared], atol=0.02)


def test_damaged_recordings_raise_only_data_errors():
    random = np.random.default_rng(3)
    for format in FORMATS:
        content = encode(sine(0.2), format=format)
        for _ in range(40):
            damaged = bytearray(content)
            for index in random.integers(0, min(len(content), 300), 3):
                damaged[index] = random.integers(256)
            try:
                wave_T = decode_audio(bytes(damaged), source_name="a clip", max_seconds=20.0)
            except DataError:
                continue
            assert np.isfinite(wave_T).all() and len(wave_T) <= 20 * SAMPLE_RATE + 1


@pytest.mark.parametrize("rate", [15_999, 47_999, 192_001, 2_000_000_011])
def test_uncommon_rates_are_rejected(rate):
    with pytest.raises(DataError, match=rf"clip 7 has a sample rate of {rate} Hz, expected a common rate"):
        decode_audio(encode(np.zeros(100), rate), source_name="clip 7")


@pytest.mark.parametrize("rate", [11_025, 12_000, 24_000, 32_000, 37_800, 88_200, 96_000, 192_000])
def test_common_rates_are_accepted(rate):
    wave_T = decode_audio(encode(sine(0.5, rate), rate), source_name="a clip")
    assert len(wave_T) == pytest.approx(8_000, abs=1)
    assert pitch_of(wave_T) == pytest.approx(440, abs=3)


def test_header_that_states_hours_allocates_no_memory():
    content = bytearray(encode(sine(0.1), format="FLAC"))
    (packed,) = struct.unpack(">Q", content[18:26])  # rate, channels, bits, then the number of samples in 36 bits
    assert packed & (2**36 - 1) == 1_600
    content[18:26] = struct.pack(">Q", packed | (2**36 - 1))
    try:
        wave_T = decode_audio(bytes(content), source_name="a clip")
    except DataError:
        return
    assert len(wave_T) <= 1_600


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"])
def test_wav_subtypes(subtype):
    wave_T = decode_audio(encode(sine(), subtype=subtype), source_name="a clip")
    np.testing.assert_allclose(wave_T, sine(), atol=0.02)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize(
    ("format", "subtype"), [*((name, None) for name in FORMATS), ("OGG", "OPUS"), ("WAV", "GSM610")]
)
def test_part_equals_that_of_the_complete_recording(format, subtype, rate):
    rate = 48_000 if subtype == "OPUS" and rate == 44_100 else rate
    random = np.random.default_rng(0)
    content = encode(0.2 * random.standard_normal(3 * rate), rate, format, subtype)
    part_T = decode_audio(content, source_name="a clip", start=1.25, end=2.0)
    full_T = decode_audio(content, source_name="a clip")
    assert len(part_T) == 12_000
    np.testing.assert_allclose(part_T[50:-50], full_T[20_050:31_950], atol=2 / 32768)


def test_parts_are_cut_at_the_limit():
    content = encode(sine(3.0))
    part = decode_recording(content, source_name="a clip", start=1.0, end=3.0, max_seconds=0.5)
    assert (len(part.wave_T), part.is_cut) == (8_000, True)
    assert not decode_recording(content, source_name="a clip", start=1.0, end=2.0, max_seconds=1.0).is_cut
    assert len(decode_audio(content, source_name="a clip", start=1.0)) == 32_000


@pytest.mark.parametrize(("start", "end"), [(0.5, 1.5), (1.0, 2.0), (5.0, 6.0), (1e9, 2e9)])
def test_part_beyond_the_end_is_rejected(start, end):
    for format in FORMATS:
        message = r"clip 7 lasts 1\.00 s and does not contain the requested part from"
        with pytest.raises(ClipError, match=message) as caught:
            decode_audio(encode(sine(1.0), format=format), source_name="clip 7", start=start, end=end)
        assert caught.value.kind == "outside"


@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "FLAC", "MP3"])
def test_fewer_samples_than_the_header_states(format):
    content = encode(sine(2.0), format=format)
    half = content[: len(content) // 2]
    with pytest.raises(ClipError, match=r"clip 7 ends after .* truncated or damaged") as caught:
        decode_audio(half, source_name="clip 7")
    assert caught.value.kind == "truncated"
    assert len(decode_audio(half, source_name="clip 7", end=0.5)) == 8_000  # the requested part is complete


def test_opus_file_without_its_last_page_is_truncated():
    content = encode(sine(2.0), format="OGG", subtype="OPUS")
    with pytest.raises(ClipError) as caught:
        decode_audio(content[: int(0.9 * len(content))], source_name="clip 7")
    assert caught.value.kind == "truncated"


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_placeholder_sizes_of_streams_are_ignored(size):
    content = bytearray(encode(sine()))
    offset = content.index(b"data") + 4
    content[offset : offset + 4] = struct.pack("<I", size)
    np.testing.assert_allclose(decode_audio(bytes(content), source_name="a clip"), sine(), atol=1e-4)


NOISE = 0.2 * np.random.default_rng(3).standard_normal((2, 32_000)).clip(-4, 4)


@pytest.mark.parametrize(("channels", "expected"), [
    ((sine(2.0), -sine(2.0)), 0),
    ((sine(2.0), -0.8 * sine(2.0)), 0),
    ((0.7 * sine(2.0), -0.9 * sine(2.0)), 1),
    ((sine(2.0) + 0.01 * NOISE[0], -sine(2.0) + 0.01 * NOISE[1]), 0),
    ((sine(2.0) + 0.1, 0.1 - sine(2.0)), 0),  # with an offset
    ((0 * sine(2.0), 0 * sine(2.0), sine(2.0), -sine(2.0)), 2),
    ((sine(2.0), -0.5 * sine(2.0), -0.5 * sine(2.0)), 0),
])  # fmt: skip
@pytest.mark.parametrize(("rate", "format"), [(16_000, "WAV"), (16_000, "FLAC"), (44_100, "WAV"), (48_000, "OGG")])
def test_channels_of_opposite_polarity_are_not_averaged(channels, expected, rate, format):
    samples_TC = np.stack(channels, axis=1)
    if format != "OGG":
        samples_TC = to_float(to_int16(samples_TC))
    stored_TC = samples_TC if format == "OGG" else to_int16(samples_TC)
    recording = decode_recording(encode(stored_TC, rate, format), source_name="a clip")
    assert recording.channel == expected
    loudest = np.abs(samples_TC).max(axis=0)[recording.channel]
    assert np.abs(recording.wave_T).max() == pytest.approx(loudest, rel=0.15)
    if (rate, format) == (16_000, "WAV"):
        np.testing.assert_array_equal(recording.wave_T, samples_TC[:, recording.channel])


@pytest.mark.parametrize("channels", [
    (sine(2.0), sine(2.0)), (sine(2.0), 0 * sine(2.0)), tuple(NOISE), (sine(2.0), sine(2.0, pitch=300)),
    (NOISE[0], NOISE[1] - 0.5 * NOISE[0]), (0 * NOISE[0], 0 * NOISE[0]), (0 * NOISE[0] + 0.25, 0 * NOISE[0] - 0.5),
    (sine(2.0), *(0 * NOISE[0],) * 7),
])  # fmt: skip
def test_mean_of_other_channels_is_unchanged(channels):
    samples_TC = to_int16(np.stack(channels, axis=1))
    recording = decode_recording(encode(samples_TC), source_name="a clip")
    mean_T = np.concatenate([part.mean(axis=1, dtype=np.float32) for part in np.split(to_float(samples_TC), [1_000])])
    assert recording.channel is None
    np.testing.assert_array_equal(recording.wave_T, to_float(to_int16(mean_T)))


def test_polarity_is_that_of_the_requested_part():
    left_T = sine(2.0)
    content = encode(np.stack([left_T, np.concatenate([left_T[:16_000], -left_T[16_000:]])], axis=1))
    first, second = (decode_recording(content, source_name="a clip", start=s, end=s + 1.0) for s in (0.0, 1.0))
    assert (first.channel, second.channel) == (None, 0)
    assert np.abs(second.wave_T).max() == pytest.approx(0.5, abs=0.01)
    cut = decode_recording(content, source_name="a clip", start=1.0, max_seconds=0.5)
    assert (cut.channel, cut.is_cut, len(cut.wave_T)) == (0, True, 8_000)


def test_too_many_channels_are_rejected():
    with pytest.raises(ClipError, match="200 channels") as caught:
        decode_audio(encode(np.zeros((10, 200))), source_name="clip 7")
    assert caught.value.kind == "header"


def test_clipping_is_measured_before_mixing():
    def clipped_fraction(samples: np.ndarray) -> float:
        return decode_recording(encode(samples), source_name="a clip").clipped_fraction

    loud_T = np.clip(3 * sine(), -1, 1)
    assert clipped_fraction(loud_T) == pytest.approx(np.mean(np.abs(loud_T) >= 0.98), abs=1e-3)
    assert clipped_fraction(np.stack([loud_T, 0 * loud_T], axis=1)) > 0.2
    assert clipped_fraction(sine()) == 0


def encode_container(program: str, folder: Path, suffix: str) -> bytes:
    (folder / "in.wav").write_bytes(encode(sine(2.0, 44_100), 44_100))
    command = [program, "-nostdin", "-loglevel", "error", "-y", "-i", folder / "in.wav", folder / f"out.{suffix}"]
    subprocess.run(command, check=True, timeout=60)
    return (folder / f"out.{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", ["m4a", "webm", "wma", "aac"])
def test_containers_decoded_by_ffmpeg(ffmpeg, tmp_path, suffix):
    content = encode_container(ffmpeg, tmp_path, suffix)
    wave_T = decode_audio(content, source_name="a clip")
    assert len(wave_T) / SAMPLE_RATE == pytest.approx(2.0, abs=0.1)
    assert pitch_of(wave_T) == pytest.approx(440, abs=2)
    part_T = decode_audio(content, source_name="a clip", start=0.5, end=1.25)
    np.testing.assert_allclose(part_T[50:-50], wave_T[8_050:19_950], atol=2 / 32768)
    cut = decode_recording(content, source_name="a clip", max_seconds=1.0)
    assert (len(cut.wave_T), cut.is_cut) == (16_000, True)


def test_content_that_ffmpeg_cannot_decode_is_rejected(ffmpeg, tmp_path):
    content = encode_container(ffmpeg, tmp_path, "m4a")
    with pytest.raises(ClipError, match=r"clip 7 \(MP4 \(M4A\)\): ffmpeg reports '[^/]*'") as caught:
        decode_audio(content[: len(content) // 2], source_name="clip 7")
    assert caught.value.kind == "undecodable"


def test_ffmpeg_leaves_no_files_and_needs_no_temporary_folder(ffmpeg, tmp_path, monkeypatch):
    content = encode_container(ffmpeg, tmp_path, "m4a")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert len(decode_audio(content, source_name="a clip")) > 30_000


def test_ffmpeg_is_confined(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text(
        "#!/bin/sh\necho $(ulimit -v) $(ulimit -t) $(ulimit -f) $(ulimit -c) $(env | wc -l) >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SECRET", "value")
    with pytest.raises(ClipError, match=r"ffmpeg reports '2097152 121 0 0 [34]'"):  # the shell adds PWD
        decode_audio(b"#!AMR\n" + bytes(100), source_name="clip 7")


def test_error_where_ffmpeg_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClipError, match=r"MP4 \(M4A\) needs ffmpeg, which is not installed") as caught:
        decode_audio(b"\0\0\0\x20ftypM4A " + bytes(100), source_name="clip 7")
    assert caught.value.kind == "needs-ffmpeg"


def test_ffmpeg_that_hangs_is_ended(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("lakd_ray.audio.ffmpeg._TIMEOUT_S", 0.2)
    with pytest.raises(ClipError, match=r"did not finish within 0\.2 s"):
        decode_audio(b"#!AMR\n" + bytes(100), source_name="clip 7")


@pytest.mark.parametrize(
    "content", [b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd"]
)
def test_playlists_are_not_opened(ffmpeg, content):
    with pytest.raises(ClipError, match="expected WAV, FLAC, OGG or MP3"):
        decode_audio(content, source_name="clip 7")
