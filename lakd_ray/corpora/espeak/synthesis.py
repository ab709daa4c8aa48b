"""A demo corpus of synthesised speech: espeak-ng voices, with emotions acted by rule.

Nothing recorded, licensed or downloaded is needed, so the whole pipeline can be shown on any machine.
Emotion is a rule here (pitch, range, rate, spectral tilt, clipping, breath, loudness), drawn at random around
overlapping means and smaller than the differences between speakers: results on this corpus say nothing about
human emotion.

espeak-ng keeps state between calls, so each language is spoken by one fresh process, always in the same
order: the same parameters give the same bytes. It comes with the optional dependency ``espeakng-loader``
(GPL-3), which is loaded only while a corpus is made.
"""

from __future__ import annotations

import csv
import ctypes
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import uuid
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lakd_ray.corpora.espeak.sentences import (
    FEMALE_VOICES,
    LANGUAGES,
    MALE_VOICES,
    PROSODY_BY_EMOTION,
    Speaker,
    make_speakers,
)
from lakd_ray.errors import DataError

GENERATOR_VERSION = 2
"""Raised whenever the same parameters would sound different: an older corpus is not taken for a new one."""

ESPEAK_SAMPLE_RATE = 22_050
MANIFEST_COLUMNS = ("path", "emotion", "language", "speaker", "sentence", "session", "text")
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak-ng's numbers for its parameters
MAX_SPEAKERS = len(FEMALE_VOICES) + len(MALE_VOICES)

ProgressCallback = Callable[[int, int], None]
Wave = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SynthClip:
    """One row of the manifest and everything its sound depends on."""

    path: str
    emotion: str
    language: str
    speaker: Speaker
    sentence: str
    text: str
    rng_key: tuple[int, ...]

    def to_row(self) -> tuple[str, ...]:
        """The manifest row, in the order of ``COLUMNS``."""
        who = self.speaker
        return (self.path, self.emotion, self.language, who.name, self.sentence, who.session, self.text)


@dataclass(frozen=True)
class SynthesisConfig:
    """What a corpus is made from; equal plans (and generator versions) give equal bytes."""

    languages: tuple[str, ...]
    speakers: int
    sentences: int
    takes: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse what cannot be spoken, before anything is written."""
        unknown = [name for name in self.languages if name not in LANGUAGES]
        if unknown or not self.languages or len(set(self.languages)) != len(self.languages):
            raise DataError(f"languages are {list(self.languages)}; expected some of {sorted(LANGUAGES)}, each once.")
        most_sentences = min(len(LANGUAGES[name].sentences) for name in self.languages)
        for field, most in (("speakers", MAX_SPEAKERS), ("sentences", most_sentences), ("takes", 99)):
            value = getattr(self, field)
            if not 1 <= value <= most:
                raise DataError(f"{field} is {value}; the synthesised corpus takes 1 to {most}.")
        if self.seed < 0:
            raise DataError(f"seed is {self.seed}; it must be 0 or more.")

    def to_record(self) -> dict[str, Any]:
        """What is kept in ``corpus.json`` to recognise the corpus again."""
        return {"generator": "espeak", "version": GENERATOR_VERSION, **asdict(self), "languages": list(self.languages)}

    def iter_clips(self, language: str) -> Iterator[SynthClip]:
        """Every utterance of a language, in the order in which it is spoken."""
        order = list(LANGUAGES).index(language)
        for who, speaker in enumerate(make_speakers(language, self.speakers, self.seed)):
            for take in range(self.takes):
                for line in range(self.sentences):
                    for acted, emotion in enumerate(PROSODY_BY_EMOTION):
                        name = f"{speaker.name}-s{line + 1}-{emotion}-t{take + 1}.wav"
                        yield SynthClip(
                            path=f"audio/{language}/{name}",
                            emotion=emotion,
                            language=language,
                            speaker=speaker,
                            sentence=f"{language}-s{line + 1}",
                            text=LANGUAGES[language].sentences[line],
                            rng_key=(self.seed, 2, order, who, take, line, acted),
                        )


class EspeakSynthesizer:
    """espeak-ng in this process, through ctypes; only ever used in a process of its own."""

    def __init__(self) -> None:
        loader = importlib.import_module("espeakng_loader")
        self._lib = ctypes.CDLL(loader.get_library_path())
        home = str(Path(loader.get_data_path()).parent).encode()
        if self._lib.espeak_Initialize(2, 500, home, 0) != ESPEAK_SAMPLE_RATE:
            raise DataError(f"espeak-ng did not start at {ESPEAK_SAMPLE_RATE} Hz; reinstall espeakng-loader.")
        self._chunks: list[bytes] = []
        self._voice = ""
        signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._callback = signature(self._on_samples)  # kept, or ctypes would free what espeak-ng still calls
        self._lib.espeak_SetSynthCallback(self._callback)
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else the time seeds the breathy voices

    def _on_samples(self, samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def synthesize(self, text: str, voice: str, rate: float, pitch: float, pitch_range: float) -> Wave:
        """Speak a text; returns the samples in -1..1."""
        self._chunks.clear()
        if voice != self._voice and self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise DataError(f"espeak-ng has no voice {voice!r}: pip install 'lakd-ray[demo]'")
        self._voice = voice
        settings = {_RATE: rate, _VOLUME: 100, _PITCH: pitch, _RANGE: pitch_range}
        for parameter, value in settings.items():
            self._lib.espeak_SetParameter(parameter, round(value), 0)
        spoken = text.encode() + b"\0"
        self._lib.espeak_Synth(spoken, len(spoken), 0, 0, 0, 1, None, None)
        self._lib.espeak_Synchronize()
        return np.frombuffer(b"".join(self._chunks), np.int16).astype(np.float64) / 32768


def _trim_silence(wave_T: Wave, margin: int = ESPEAK_SAMPLE_RATE // 20) -> Wave:
    """Cut espeak-ng's silence at both ends down to 50 ms."""
    loud = np.flatnonzero(np.abs(wave_T) > 0.01 * np.abs(wave_T).max())
    return wave_T[max(loud[0] - margin, 0) : loud[-1] + margin]


def _apply_spectral_tilt(wave_T: Wave, db_per_octave: float) -> Wave:
    """Turn the spectrum around 1 kHz, flat below 80 Hz."""
    length = -(-len(wave_T) // 4096) * 4096  # lengths with large prime factors take ten times as long
    octaves_F = np.log2(np.maximum(np.fft.rfftfreq(length, 1 / ESPEAK_SAMPLE_RATE), 80.0) / 1000.0)
    tilted_T: Wave = np.fft.irfft(np.fft.rfft(wave_T, length) * 10 ** (db_per_octave * octaves_F / 20), length)
    return tilted_T[: len(wave_T)]


def _compute_envelope(wave_T: Wave, width: int = ESPEAK_SAMPLE_RATE // 50) -> Wave:
    """The moving average of the magnitude over 20 ms."""
    sums_T = np.cumsum(np.pad(np.abs(wave_T), (width - width // 2, width // 2)))
    average_T: Wave = (sums_T[width:] - sums_T[:-width]) / width
    return average_T


def _rms(wave_T: Wave) -> float:
    return float(np.sqrt(np.mean(wave_T**2)))


def synthesize_clip(synthesizer: EspeakSynthesizer, clip: SynthClip) -> npt.NDArray[np.int16]:
    """Speak one clip with its emotion; every draw comes from the clip's own key."""
    rng = np.random.default_rng(clip.rng_key)
    rule, who = PROSODY_BY_EMOTION[clip.emotion], clip.speaker
    voice_T = synthesizer.synthesize(
        clip.text,
        who.voice,
        rate=who.words_per_minute * rng.normal(*rule.rate),
        pitch=np.clip(who.pitch + rng.normal(*rule.pitch), 0, 99),
        pitch_range=np.clip(who.pitch_range + rng.normal(*rule.pitch_range), 0, 99),
    )
    voice_T = _trim_silence(voice_T)
    drive = max(rng.normal(*rule.drive), 0.3)
    voice_T = np.tanh(drive * voice_T / np.abs(voice_T).max())
    breath_T = _apply_spectral_tilt(rng.standard_normal(len(voice_T)), 1.5) * _compute_envelope(voice_T)
    breath_T *= _rms(voice_T) / _rms(breath_T) * 10 ** (rng.normal(*rule.breath) / 20)
    voice_T = _apply_spectral_tilt(voice_T + breath_T, rng.normal(*rule.tilt) + who.tilt)
    seconds_T = np.arange(len(voice_T)) / ESPEAK_SAMPLE_RATE
    swing_T = np.sin(2 * np.pi * (rng.uniform(4, 6) * seconds_T + rng.uniform()))
    voice_T *= 1 + np.clip(rng.normal(*rule.tremolo), 0, 0.8) * swing_T
    voice_T *= 10 ** (rng.normal(*rule.level) / 20) / _rms(voice_T)
    room_T = _apply_spectral_tilt(rng.standard_normal(len(voice_T)), -3.0)
    voice_T += room_T * (_rms(voice_T) / _rms(room_T) * 10 ** (rng.uniform(-45, -28) / 20))
    voice_T *= min(1.0, 0.98 / np.abs(voice_T).max())
    return np.round(voice_T * 32767).astype(np.int16)


def _synthesize_language(folder: Path, plan: SynthesisConfig, language: str) -> None:
    """The worker: write a language's clips, and say "clip" on standard output after each."""
    espeak = EspeakSynthesizer()
    (folder / "audio" / language).mkdir(parents=True)
    for clip in plan.iter_clips(language):
        samples_T = synthesize_clip(espeak, clip)
        with wave.open(str(folder / clip.path), "wb") as file:
            file.setparams((1, 2, ESPEAK_SAMPLE_RATE, len(samples_T), "NONE", "not compressed"))
            file.writeframes(samples_T.astype("<i2").tobytes())
        print("clip", flush=True)


def _worker() -> None:
    folder, language, parameters = sys.argv[1:]
    fields = json.loads(parameters)
    _synthesize_language(Path(folder), SynthesisConfig(**{**fields, "languages": tuple(fields["languages"])}), language)


def _run_worker(folder: Path, plan: SynthesisConfig, language: str, on_clip: Callable[[], None]) -> None:
    """Have a language spoken by a fresh process; ``on_clip`` is called after each clip."""
    code = f"from {__spec__.name} import _worker; _worker()"
    command = [sys.executable, "-c", code, str(folder), language, json.dumps(asdict(plan))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    said: list[str] = []
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            for line in process.stdout or ():
                if line == "clip\n":
                    on_clip()
                else:
                    said.append(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        tail = "".join(said[-8:]).strip() or "it said nothing"
        raise DataError(f"speaking the {language} clips failed with status {process.returncode}: {tail}")


def _find_existing_corpus(folder: Path, plan: SynthesisConfig) -> Path | None:
    """The manifest of a whole corpus of this plan, or None where there is nothing yet; refuses all else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    way_out = "Choose another folder, or delete this one to make the corpus anew."
    record = folder / "corpus.json"
    if not record.is_file():
        raise DataError(f"{folder} exists but has no corpus.json, so it is no whole demo corpus. {way_out}")
    found, expected = json.loads(record.read_text(encoding="utf-8")), plan.to_record()
    if found != expected:
        names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        differ = ", ".join(f"{name} {found.get(name)!r} not {expected.get(name)!r}" for name in names)
        raise DataError(f"{folder} holds another demo corpus than asked for: {differ}. {way_out}")
    paths = ["manifest.csv", *(clip.path for language in plan.languages for clip in plan.iter_clips(language))]
    missing = [path for path in paths if not (folder / path).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {len(missing)} files, the first is {missing[0]}. {way_out}")
    return folder / "manifest.csv"


def _write_corpus(folder: Path, plan: SynthesisConfig, progress: ProgressCallback | None) -> None:
    """Write the whole corpus into a folder that nobody else knows of."""
    clips = [clip for language in plan.languages for clip in plan.iter_clips(language)]
    done = 0

    def on_clip() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(clips))

    folder.mkdir(parents=True)
    for language in plan.languages:
        _run_worker(folder, plan, language, on_clip)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([MANIFEST_COLUMNS, *(clip.to_row() for clip in clips)])
    (folder / "corpus.json").write_text(json.dumps(plan.to_record(), indent=2) + "\n", encoding="utf-8")


def synthesize_corpus(
    folder: Path,
    *,
    languages: Sequence[str] = ("en", "fi", "fr"),
    speakers: int = 12,
    sentences: int = 8,
    takes: int = 1,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Path:
    """Make the demo corpus, or reuse the one in ``folder`` if it has the same parameters.

    ``folder`` appears whole or not at all. ``progress(done, clips)`` is called after each clip.

    Returns:
        The manifest: one row a clip, with paths relative to it.

    Raises:
        DataError: ``folder`` holds something else, a parameter is wrong, or espeakng-loader is missing.
    """
    plan = SynthesisConfig(tuple(languages), speakers, sentences, takes, seed)
    existing = _find_existing_corpus(folder, plan)
    if existing is not None:
        return existing
    if importlib.util.find_spec("espeakng_loader") is None:
        raise DataError("The demo corpus needs espeakng-loader: pip install 'lakd-ray[demo]'")
    making = folder.parent / f".{folder.name}.making-{uuid.uuid4().hex[:8]}"
    try:
        _write_corpus(making, plan, progress)
        try:
            making.rename(folder)
        except OSError:  # somebody else made it meanwhile: take theirs if it is the same corpus
            if _find_existing_corpus(folder, plan) is None:
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder / "manifest.csv"
