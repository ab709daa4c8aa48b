"""Call espeak-ng through ctypes, from the optional dependency `espeakng-loader`."""

import ctypes
import importlib
from pathlib import Path

import numpy as np

from lakd_ray.corpora.espeak.prosody import ESPEAK_SAMPLE_RATE, VoiceParameters, Wave
from lakd_ray.errors import DataError

_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER of espeak-ng's speak_lib.h


class EspeakSynthesizer:
    """Runs espeak-ng in this process; its output depends on earlier calls, so each sequence needs a fresh process."""

    def __init__(self) -> None:
        loader = importlib.import_module("espeakng_loader")
        self._lib = ctypes.CDLL(loader.get_library_path())
        home = str(Path(loader.get_data_path()).parent).encode()
        if self._lib.espeak_Initialize(2, 500, home, 0) != ESPEAK_SAMPLE_RATE:
            raise DataError(f"espeak-ng did not start at {ESPEAK_SAMPLE_RATE} Hz; reinstall espeakng-loader.")
        self._chunks: list[bytes] = []
        self._voice = ""
        signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._callback = signature(self._on_samples)  # the reference keeps ctypes from freeing the callback
        self._lib.espeak_SetSynthCallback(self._callback)
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else breathy voices depend on the time

    def _on_samples(self, samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def synthesize(self, text: str, voice: str, parameters: VoiceParameters) -> Wave:
        """Synthesize a text and return the samples in [-1, 1), shape [T].

        Raises:
            DataError: espeak-ng has no such voice.
        """
        self._chunks.clear()
        if voice != self._voice and self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise DataError(f"espeak-ng has no voice {voice!r}: pip install 'lakd-ray[demo]'")
        self._voice = voice
        values = {_RATE: parameters.rate, _VOLUME: 100, _PITCH: parameters.pitch, _RANGE: parameters.pitch_range}
        for parameter, value in values.items():
            self._lib.espeak_SetParameter(parameter, round(value), 0)
        encoded = text.encode() + b"\0"
        self._lib.espeak_Synth(encoded, len(encoded), 0, 0, 0, 1, None, None)
        self._lib.espeak_Synchronize()
        return np.frombuffer(b"".join(self._chunks), np.int16).astype(np.float64) / 32768
