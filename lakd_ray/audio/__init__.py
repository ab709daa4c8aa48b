"""Decode recordings to 16 kHz mono float32, and encode and decode the FLAC of shards.

decoding  `decode_audio` and `decode_recording`: validate and decode a recording in any supported format
ffmpeg    convert containers that libsndfile does not read
pcm       resample, convert between float and 16-bit samples, encode and decode FLAC
sandbox   `SandboxPool`: decode untrusted recordings in worker processes with limits
sources   list audio files, read the bytes of a recording from a file or a table row
"""

from lakd_ray.audio.decoding import Recording, decode_audio, decode_recording
from lakd_ray.audio.pcm import SAMPLE_RATE, PcmSamples, Wave, decode_flac, encode_flac, resample, to_float, to_int16

__all__ = [
    "SAMPLE_RATE",
    "PcmSamples",
    "Recording",
    "Wave",
    "decode_audio",
    "decode_flac",
    "decode_recording",
    "encode_flac",
    "resample",
    "to_float",
    "to_int16",
]
