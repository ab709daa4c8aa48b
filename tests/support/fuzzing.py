"""Recordings in every format, and what can go wrong with their bytes."""

import io
from collections.abc import Iterator

import numpy as np
import soundfile

RATE = 16_000
# ending, libsndfile's format and subtype
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


def sound(format: str, subtype: str, *, seconds: float = 0.3, rate: int = RATE, seed: int = 0) -> bytes:
    """A noisy tone."""
    random = np.random.default_rng(seed)
    time_T = np.arange(round(seconds * rate)) / rate
    wave_T = 0.3 * np.sin(2 * np.pi * 220 * time_T) + 0.05 * random.standard_normal(len(time_T))
    buffer = io.BytesIO()
    soundfile.write(buffer, wave_T, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def flip(content: bytes, random: np.random.Generator) -> bytes:
    """Bits changed anywhere."""
    spoilt = bytearray(content)
    for place in random.integers(0, len(content), random.integers(1, 30)):
        spoilt[place] ^= 1 << int(random.integers(8))
    return bytes(spoilt)


def lie(content: bytes, random: np.random.Generator) -> bytes:
    """Numbers in the header replaced by extreme ones."""
    spoilt = bytearray(content)
    for _ in range(random.integers(1, 4)):
        place, size = int(random.integers(4, min(120, len(content) - 8))), int(random.choice([1, 2, 4, 8]))
        spoilt[place : place + size] = [b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, random.bytes(8)][
            random.integers(4)
        ][:size]
    return bytes(spoilt)


def truncate(content: bytes, random: np.random.Generator) -> bytes:
    """The beginning alone."""
    return content[: int(random.integers(0, len(content)))]


def blank(content: bytes, random: np.random.Generator) -> bytes:
    """A stretch of zero bytes."""
    start, length = int(random.integers(0, len(content))), int(random.integers(1, len(content)))
    return (content[:start] + bytes(length) + content[start + length :])[: len(content)]


def insert(content: bytes, random: np.random.Generator) -> bytes:
    """Bytes that do not belong there, up to a header of a megabyte."""
    place, length = int(random.integers(0, min(200, len(content)))), int(random.choice([1, 7, 300, 1_000_000]))
    return content[:place] + random.bytes(length) + content[place:]


def join(content: bytes, random: np.random.Generator) -> bytes:
    """Two recordings of different formats in one file."""
    _, format, subtype = FORMATS[random.integers(len(FORMATS))]
    return content[: int(random.integers(1, len(content)))] + sound(format, subtype)


def swap(content: bytes, random: np.random.Generator) -> bytes:
    """The beginning of another format before these samples."""
    _, format, subtype = FORMATS[random.integers(len(FORMATS))]
    head = int(random.integers(4, 100))
    return sound(format, subtype, seconds=0.1)[:head] + content[head:]


MUTATIONS = (flip, lie, truncate, blank, insert, join, swap)


def spoilt(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """So many recordings, names with endings that need not be true, each spoilt in one way or two."""
    random = np.random.default_rng(seed)
    whole = [sound(format, subtype, seed=number) for number, (_, format, subtype) in enumerate(FORMATS)]
    for number in range(count):
        which = number % len(FORMATS)
        content = whole[which]
        kinds = random.choice(len(MUTATIONS), 1 + number % 2, replace=False)
        for kind in kinds:
            content = MUTATIONS[kind](content, random) if len(content) > 200 else content
        ending = FORMATS[which if number % 5 else (which + 3) % len(FORMATS)][0]
        yield f"{number:04d}-{'-'.join(MUTATIONS[kind].__name__ for kind in kinds)}.{ending}", content
