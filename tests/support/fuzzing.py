"""Generate recordings in all formats and corrupt their bytes, for fuzz tests."""

import io
from collections.abc import Iterator

import numpy as np
import soundfile

RATE = 16_000
# File suffix, libsndfile's format and subtype.
FORMATS = (
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "PCM_U8"),
    ("wav", "WAV", "PCM_24"),
    ("wav", "WAV", "PCM_32"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAV", "ALAW"),
    ("wav", "WAV", "ULAW"),
    ("wav", "WAV", "IMA_ADPCM"),
    ("aiff", "AIFF", "PCM_16"),
    ("flac", "FLAC", "PCM_16"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
)


def encode_tone(format: str, subtype: str, *, seconds: float = 0.3, rate: int = RATE, seed: int = 0) -> bytes:
    """Encode a noisy tone of 220 Hz in a format."""
    random = np.random.default_rng(seed)
    time_T = np.arange(round(seconds * rate)) / rate
    wave_T = 0.3 * np.sin(2 * np.pi * 220 * time_T) + 0.05 * random.standard_normal(len(time_T))
    buffer = io.BytesIO()
    soundfile.write(buffer, wave_T, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def flip(content: bytes, random: np.random.Generator) -> bytes:
    """Flip up to 29 bits at random positions."""
    corrupted = bytearray(content)
    for index in random.integers(0, len(content), random.integers(1, 30)):
        corrupted[index] ^= 1 << int(random.integers(8))
    return bytes(corrupted)


def exaggerate(content: bytes, random: np.random.Generator) -> bytes:
    """Replace numbers in the header by extreme values."""
    corrupted = bytearray(content)
    for _ in range(random.integers(1, 4)):
        start, size = int(random.integers(4, min(120, len(content) - 8))), int(random.choice([1, 2, 4, 8]))
        values = [b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, random.bytes(8)]
        corrupted[start : start + size] = values[random.integers(4)][:size]
    return bytes(corrupted)


def truncate(content: bytes, random: np.random.Generator) -> bytes:
    """Return only the beginning of the recording."""
    return content[: int(random.integers(0, len(content)))]


def blank(content: bytes, random: np.random.Generator) -> bytes:
    """Replace a range by zero bytes."""
    start, length = int(random.integers(0, len(content))), int(random.integers(1, len(content)))
    return (content[:start] + bytes(length) + content[start + length :])[: len(content)]


def insert(content: bytes, random: np.random.Generator) -> bytes:
    """Insert random bytes near the start, up to one megabyte."""
    start, length = int(random.integers(0, min(200, len(content)))), int(random.choice([1, 7, 300, 1_000_000]))
    return content[:start] + random.bytes(length) + content[start:]


def join(content: bytes, random: np.random.Generator) -> bytes:
    """Append a recording of a different format to a part of this one."""
    _, format, subtype = FORMATS[random.integers(len(FORMATS))]
    return content[: int(random.integers(1, len(content)))] + encode_tone(format, subtype)


def swap(content: bytes, random: np.random.Generator) -> bytes:
    """Replace the header by that of a different format."""
    _, format, subtype = FORMATS[random.integers(len(FORMATS))]
    size = int(random.integers(4, 100))
    return encode_tone(format, subtype, seconds=0.1)[:size] + content[size:]


MUTATIONS = (flip, exaggerate, truncate, blank, insert, join, swap)


def corrupted_recordings(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of `count` recordings, each corrupted by one or two mutations.

    One name in five has a suffix that does not match the format.
    """
    random = np.random.default_rng(seed)
    intact = [encode_tone(format, subtype, seed=number) for number, (_, format, subtype) in enumerate(FORMATS)]
    for number in range(count):
        index = number % len(FORMATS)
        content = intact[index]
        kinds = random.choice(len(MUTATIONS), 1 + number % 2, replace=False)
        for kind in kinds:
            content = MUTATIONS[kind](content, random) if len(content) > 200 else content
        suffix = FORMATS[index if number % 5 else (index + 3) % len(FORMATS)][0]
        yield f"{number:04d}-{'-'.join(MUTATIONS[kind].__name__ for kind in kinds)}.{suffix}", content
