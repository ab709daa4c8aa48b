"""Emotions of the demo corpus as rules: parameters of espeak-ng and signal processing of its output.

Every parameter is drawn from a normal distribution per emotion. The distributions overlap, and emotions differ less
than speakers do.

Shape suffixes: T samples, F frequency bins.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lakd_ray.corpora.espeak.speakers import Speaker

ESPEAK_SAMPLE_RATE = 22_050

Wave = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prosody:
    """The mean and the standard deviation of each parameter of an emotion."""

    pitch: tuple[float, float]
    """Added to the speaker's pitch, on a scale of 0 to 99."""
    pitch_range: tuple[float, float]
    """Added to the speaker's pitch range, on a scale of 0 to 99."""
    rate: tuple[float, float]
    """Factor on the speaker's words per minute."""
    tilt: tuple[float, float]
    """Spectral tilt in dB per octave around 1 kHz."""
    drive: tuple[float, float]
    """Strength of the soft clipping; 0.3 is almost none."""
    breath: tuple[float, float]
    """Level of the breath noise in dB relative to the voice."""
    tremolo: tuple[float, float]
    """Depth of a loudness modulation at 4 to 6 Hz."""
    level: tuple[float, float]
    """RMS level in dB of full scale."""


PROSODY_BY_EMOTION: dict[str, Prosody] = {
    "anger": Prosody((12, 5), (24, 8), (1.17, 0.06), (3.2, 0.9), (5.0, 1.4), (-36, 4), (0.12, 0.07), (-19, 3)),
    "happiness": Prosody((22, 6), (44, 8), (1.08, 0.06), (1.5, 0.9), (1.0, 0.6), (-34, 4), (0.55, 0.13), (-21, 3)),
    "neutral": Prosody((0, 5), (0, 7), (1.00, 0.06), (0.0, 0.9), (0.8, 0.5), (-36, 4), (0.12, 0.07), (-23, 3)),
    "sadness": Prosody((-10, 5), (-22, 7), (0.79, 0.06), (-3.1, 0.9), (0.5, 0.3), (-15, 3), (0.20, 0.10), (-25, 3)),
}


@dataclass(frozen=True)
class VoiceParameters:
    """The parameters of espeak-ng for one clip."""

    rate: float
    """Words per minute."""
    pitch: float
    pitch_range: float


def draw_voice_parameters(emotion: str, speaker: Speaker, rng: np.random.Generator) -> VoiceParameters:
    """Draw the parameters of espeak-ng for an emotion of a speaker."""
    rule = PROSODY_BY_EMOTION[emotion]
    return VoiceParameters(
        rate=speaker.words_per_minute * rng.normal(*rule.rate),
        pitch=np.clip(speaker.pitch + rng.normal(*rule.pitch), 0, 99),
        pitch_range=np.clip(speaker.pitch_range + rng.normal(*rule.pitch_range), 0, 99),
    )


def apply_effects(wave_T: Wave, emotion: str, speaker: Speaker, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Apply the effects of an emotion and background noise to synthesized speech; returns 16-bit samples."""
    rule = PROSODY_BY_EMOTION[emotion]
    voice_T = _trim_silence(wave_T)
    drive = max(rng.normal(*rule.drive), 0.3)
    voice_T = np.tanh(drive * voice_T / np.abs(voice_T).max())
    breath_T = _apply_spectral_tilt(rng.standard_normal(len(voice_T)), 1.5) * _compute_envelope(voice_T)
    breath_T *= _rms(voice_T) / _rms(breath_T) * 10 ** (rng.normal(*rule.breath) / 20)
    voice_T = _apply_spectral_tilt(voice_T + breath_T, rng.normal(*rule.tilt) + speaker.tilt)
    seconds_T = np.arange(len(voice_T)) / ESPEAK_SAMPLE_RATE
    modulation_T = np.sin(2 * np.pi * (rng.uniform(4, 6) * seconds_T + rng.uniform()))
    voice_T *= 1 + np.clip(rng.normal(*rule.tremolo), 0, 0.8) * modulation_T
    voice_T *= 10 ** (rng.normal(*rule.level) / 20) / _rms(voice_T)
    room_T = _apply_spectral_tilt(rng.standard_normal(len(voice_T)), -3.0)
    voice_T += room_T * (_rms(voice_T) / _rms(room_T) * 10 ** (rng.uniform(-45, -28) / 20))
    voice_T *= min(1.0, 0.98 / np.abs(voice_T).max())
    return np.round(voice_T * 32767).astype(np.int16)


def _trim_silence(wave_T: Wave, margin: int = ESPEAK_SAMPLE_RATE // 20) -> Wave:
    """Shorten the silence of espeak-ng at both ends to 50 ms."""
    loud = np.flatnonzero(np.abs(wave_T) > 0.01 * np.abs(wave_T).max())
    return wave_T[max(loud[0] - margin, 0) : loud[-1] + margin]


def _apply_spectral_tilt(wave_T: Wave, db_per_octave: float) -> Wave:
    """Tilt the spectrum around 1 kHz; the gain is constant below 80 Hz."""
    length = -(-len(wave_T) // 4096) * 4096  # an FFT is ten times slower for lengths with large prime factors
    octaves_F = np.log2(np.maximum(np.fft.rfftfreq(length, 1 / ESPEAK_SAMPLE_RATE), 80.0) / 1000.0)
    tilted_T: Wave = np.fft.irfft(np.fft.rfft(wave_T, length) * 10 ** (db_per_octave * octaves_F / 20), length)
    return tilted_T[: len(wave_T)]


def _compute_envelope(wave_T: Wave, width: int = ESPEAK_SAMPLE_RATE // 50) -> Wave:
    """Return the moving average of the magnitude over 20 ms."""
    sums_T = np.cumsum(np.pad(np.abs(wave_T), (width - width // 2, width // 2)))
    average_T: Wave = (sums_T[width:] - sums_T[:-width]) / width
    return average_T


def _rms(wave_T: Wave) -> float:
    return float(np.sqrt(np.mean(wave_T**2)))
