"""The audio door: formats, rates, and what is refused."""

import io
import os
import struct
import subprocess
from pathlib import Path

import imageio_ffmpeg
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
    slack = 0.15 if format == "MP3" else 0.001  # MP3 pads to whole frames
    assert len(wave_T) / SAMPLE_RATE == pytest.approx(1.0, abs=slack)
    assert pitch_of(wave_T) == pytest.approx(440, abs=2)
    middle_T = wave_T[4_000:12_000]
    assert np.sqrt(np.square(middle_T).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_resampling_does_not_fold_what_16_khz_cannot_hold():
    wave_T = resample(sine(1.0, 48_000, pitch=11_000).astype(np.float32), 48_000)
    assert np.abs(wave_T[1_000:-1_000]).max() < 0.005  # would be heard at 5 kHz


def test_every_16_bit_sample_comes_back_exactly():
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


def test_too_loud_is_clipped_not_wrapped():
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
def test_cut_at_the_limit(format, rate):
    content = encode(sine(2.0, rate), rate, format)
    cut_T, whole_T = (
        decode_audio(content, source_name="a clip", max_seconds=0.75),
        decode_audio(content, source_name="a clip"),
    )
    assert len(cut_T) == pytest.approx(12_000, abs=1)
    np.testing.assert_allclose(cut_T[:11_900], whole_T[:11_900], atol=2 / 32768)
    longer_T = decode_audio(content, source_name="a clip", max_seconds=10.0)
    np.testing.assert_array_equal(longer_T, whole_T)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 1])
def test_values_that_are_not_numbers_are_refused(value, channel):
    samples_TC = np.zeros((100, 2), dtype=np.float32)
    samples_TC[50, channel] = value
    with pytest.raises(DataError, match="clip 7 holds values that are not finite"):
        decode_audio(encode(samples_TC, subtype="FLOAT"), source_name="clip 7")


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG"])
def test_no_samples(format):
    with pytest.raises(DataError, match="clip 7"):
        decode_audio(encode(np.zeros(0), format=format), source_name="clip 7")


@pytest.mark.parametrize("content", [b"", b"\0", b"RIFF", b"ID3", b"fLaC", b"OggS", b"not audio" * 100, bytes(5_000)])
def test_garbage(content):
    with pytest.raises(DataError, match=r"cannot decode clip 7: .*; expected WAV, FLAC, OGG or MP3"):
        decode_audio(content, source_name="clip 7")


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_recordings_are_refused_or_are_the_beginning(format):
    content = encode(sine(), format=format)
    whole_T = decode_audio(content, source_name="a clip")
    for share in (0.01, 0.3, 0.6, 0.95):
        try:
            part_T = decode_audio(content[: int(share * len(content))], source_name="a clip")
        except DataError:
            continue
        assert len(part_T) <= len(whole_T)
        sound = np.flatnonzero(part_T)[-1] + 1  # decoders may fill what is missing with silence
        kept = max(0, min(sound, len(part_T)) - 2_000)
        np.testing.assert_allclose(part_T[:kept], whole_T[:kept], atol=0.02)


def test_damaged_recordings_raise_data_error_alone():
    random = np.random.default_rng(3)
    for format in FORMATS:
        content = encode(sine(0.2), format=format)
        for _ in range(40):
            spoilt = bytearray(content)
            for place in random.integers(0, min(len(content), 300), 3):
                spoilt[place] = random.integers(256)
            try:
                wave_T = decode_audio(bytes(spoilt), source_name="a clip", max_seconds=20.0)
            except DataError:
                continue
            assert np.isfinite(wave_T).all() and len(wave_T) <= 20 * SAMPLE_RATE + 1


@pytest.mark.parametrize("rate", [15_999, 47_999, 192_001, 2_000_000_011])
def test_odd_rates_are_refused(rate):
    with pytest.raises(DataError, match=rf"clip 7 has a sample rate of {rate} Hz, expected a usual one"):
        decode_audio(encode(np.zeros(100), rate), source_name="clip 7")


@pytest.mark.parametrize("rate", [11_025, 12_000, 24_000, 32_000, 37_800, 88_200, 96_000, 192_000])
def test_rates_in_use_are_accepted(rate):
    wave_T = decode_audio(encode(sine(0.5, rate), rate), source_name="a clip")
    assert len(wave_T) == pytest.approx(8_000, abs=1)
    assert pitch_of(wave_T) == pytest.approx(440, abs=3)


def test_a_header_that_promises_hours_costs_nothing():
    content = bytearray(encode(sine(0.1), format="FLAC"))
    (packed,) = struct.unpack(">Q", content[18:26])  # rate, channels, bits, then 36 bits: the number of samples
    assert packed & (2**36 - 1) == 1_600
    content[18:26] = struct.pack(">Q", packed | (2**36 - 1))
    try:
        wave_T = decode_audio(bytes(content), source_name="a clip")
    except DataError:
        return
    assert len(wave_T) <= 1_600


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"])
def test_wav_of_every_kind(subtype):
    wave_T = decode_audio(encode(sine(), subtype=subtype), source_name="a clip")
    np.testing.assert_allclose(wave_T, sine(), atol=0.02)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize(
    ("format", "subtype"), [*((name, None) for name in FORMATS), ("OGG", "OPUS"), ("WAV", "GSM610")]
)
def test_a_part_is_that_of_the_whole(format, subtype, rate):
    rate = 48_000 if subtype == "OPUS" and rate == 44_100 else rate
    random = np.random.default_rng(0)
    content = encode(0.2 * random.standard_normal(3 * rate), rate, format, subtype)
    part_T, whole_T = (
        decode_audio(content, source_name="a clip", start=1.25, end=2.0),
        decode_audio(content, source_name="a clip"),
    )
    assert len(part_T) == 12_000
    np.testing.assert_allclose(part_T[50:-50], whole_T[20_050:31_950], atol=2 / 32768)


def test_a_part_is_cut_at_the_limit_too():
    content = encode(sine(3.0))
    part = decode_recording(content, source_name="a clip", start=1.0, end=3.0, max_seconds=0.5)
    assert (len(part.wave_T), part.is_cut) == (8_000, True)
    assert not decode_recording(content, source_name="a clip", start=1.0, end=2.0, max_seconds=1.0).is_cut
    assert len(decode_audio(content, source_name="a clip", start=1.0)) == 32_000


@pytest.mark.parametrize(("start", "end"), [(0.5, 1.5), (1.0, 2.0), (5.0, 6.0), (1e9, 2e9)])
def test_a_part_that_is_not_there(start, end):
    for format in FORMATS:
        with pytest.raises(ClipError, match=r"clip 7 lasts 1\.00 s, and the part") as caught:
            decode_audio(encode(sine(1.0), format=format), source_name="clip 7", start=start, end=end)
        assert caught.value.kind == "outside"


@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "FLAC", "MP3"])
def test_less_audio_than_promised(format):
    content = encode(sine(2.0), format=format)
    half = content[: len(content) // 2]
    with pytest.raises(ClipError, match=r"clip 7 breaks off after .* truncated or damaged") as caught:
        decode_audio(half, source_name="clip 7")
    assert caught.value.kind == "truncated"
    assert len(decode_audio(half, source_name="clip 7", end=0.5)) == 8_000  # the part that is asked for is there


def test_an_opus_file_without_its_last_page():
    content = encode(sine(2.0), format="OGG", subtype="OPUS")
    with pytest.raises(ClipError) as caught:
        decode_audio(content[: int(0.9 * len(content))], source_name="clip 7")
    assert caught.value.kind == "truncated"


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_sizes_of_streams_are_no_promise(size):
    content = bytearray(encode(sine()))
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", size)
    np.testing.assert_allclose(decode_audio(bytes(content), source_name="a clip"), sine(), atol=1e-4)


def test_too_many_channels():
    with pytest.raises(ClipError, match="200 channels") as caught:
        decode_audio(encode(np.zeros((10, 200))), source_name="clip 7")
    assert caught.value.kind == "header"


def test_clipping_is_measured_before_mixing():
    loud = np.clip(3 * sine(), -1, 1)
    assert decode_recording(encode(loud), source_name="a clip").clipped_fraction == pytest.approx(
        np.mean(np.abs(loud) >= 0.98), abs=1e-3
    )
    assert decode_recording(encode(np.stack([loud, 0 * loud], axis=1)), source_name="a clip").clipped_fraction > 0.2
    assert decode_recording(encode(sine()), source_name="a clip").clipped_fraction == 0


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch) -> str:
    """A real ffmpeg, first on the path."""
    program = imageio_ffmpeg.get_ffmpeg_exe()
    (tmp_path / "ffmpeg").symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return program


def in_container(program: str, folder: Path, ending: str) -> bytes:
    (folder / "in.wav").write_bytes(encode(sine(2.0, 44_100), 44_100))
    command = [program, "-nostdin", "-loglevel", "error", "-y", "-i", folder / "in.wav", folder / f"out.{ending}"]
    subprocess.run(command, check=True, timeout=60)
    return (folder / f"out.{ending}").read_bytes()


@pytest.mark.parametrize("ending", ["m4a", "webm", "wma", "aac"])
def test_other_containers_by_ffmpeg(ffmpeg, tmp_path, ending):
    content = in_container(ffmpeg, tmp_path, ending)
    wave_T = decode_audio(content, source_name="a clip")
    assert len(wave_T) / SAMPLE_RATE == pytest.approx(2.0, abs=0.1)
    assert pitch_of(wave_T) == pytest.approx(440, abs=2)
    part_T = decode_audio(content, source_name="a clip", start=0.5, end=1.25)
    np.testing.assert_allclose(part_T[50:-50], wave_T[8_050:19_950], atol=2 / 32768)
    cut = decode_recording(content, source_name="a clip", max_seconds=1.0)
    assert (len(cut.wave_T), cut.is_cut) == (16_000, True)


def test_what_ffmpeg_cannot_decode(ffmpeg, tmp_path):
    content = in_container(ffmpeg, tmp_path, "m4a")
    with pytest.raises(ClipError, match=r"clip 7 \(MP4 \(M4A\)\): ffmpeg says '[^/]*'") as caught:
        decode_audio(content[: len(content) // 2], source_name="clip 7")
    assert caught.value.kind == "undecodable"


def test_ffmpeg_is_not_installed(tmp_path, monkeypatch):
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
    with pytest.raises(ClipError, match=r"not done with it after 0\.2 s"):
        decode_audio(b"#!AMR\n" + bytes(100), source_name="clip 7")


@pytest.mark.parametrize(
    "content", [b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd"]
)
def test_playlists_are_not_opened(ffmpeg, content):
    with pytest.raises(ClipError, match="expected WAV, FLAC, OGG or MP3"):
        decode_audio(content, source_name="clip 7")
