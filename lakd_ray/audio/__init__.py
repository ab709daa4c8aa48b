"""The audio door: bytes of a recording in, 16 kHz mono float32 out, and FLAC for the shards.

door     decode, read: any recording, with everything checked on the way in
ffmpeg   containers that libsndfile does not read, through the program of that name
samples  rates, 16-bit samples, FLAC
apart    processes that may die over a recording
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
