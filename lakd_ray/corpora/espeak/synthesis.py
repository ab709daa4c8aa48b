"""Synthesize the demo corpus with espeak-ng voices and the emotion rules of `prosody`.

Emotions are rules here (pitch, range, rate, spectral tilt, clipping, breath, loudness), so results on this corpus do
not predict results on human emotion.

espeak-ng keeps state between calls. Each language is therefore synthesized by one fresh process, always in the same
order: the same parameters give the same bytes. espeak-ng comes with the optional dependency `espeakng-loader` (GPL-3),
which is loaded only while a corpus is synthesized.
"""

import csv
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

from lakd_ray import storage
from lakd_ray.corpora.espeak.prosody import (
    ESPEAK_SAMPLE_RATE,
    PROSODY_BY_EMOTION,
    apply_effects,
    draw_voice_parameters,
)
from lakd_ray.corpora.espeak.sentences import LANGUAGES
from lakd_ray.corpora.espeak.speakers import MAX_SPEAKERS, Speaker, make_speakers
from lakd_ray.corpora.espeak.synthesizer import EspeakSynthesizer
from lakd_ray.errors import DataError
from lakd_ray.progress import progress_bar

GENERATOR_VERSION = 2
"""Increased when the same parameters give different audio, so that an older corpus is not reused."""

MANIFEST_COLUMNS = ("path", "emotion", "language", "speaker", "sentence", "session", "text")
_CLIP_DONE = "clip\n"  # a worker writes this line to standard output after each clip


@dataclass(frozen=True)
class SynthClip:
    """One row of the manifest and all inputs of its audio."""

    path: str
    emotion: str
    language: str
    speaker: Speaker
    sentence: str
    text: str
    rng_key: tuple[int, ...]

    def to_row(self) -> tuple[str, ...]:
        """Return the manifest row, in the order of `MANIFEST_COLUMNS`."""
        speaker = self.speaker
        return (self.path, self.emotion, self.language, speaker.name, self.sentence, speaker.session, self.text)


@dataclass(frozen=True)
class SynthesisConfig:
    """The parameters of a corpus; equal parameters and generator versions give equal bytes.

    Raises:
        DataError: a parameter is out of range, or a language is unknown.
    """

    languages: tuple[str, ...]
    speakers: int
    sentences: int
    takes: int
    seed: int

    def __post_init__(self) -> None:
        """Validate the parameters before anything is written."""
        unknown = [name for name in self.languages if name not in LANGUAGES]
        if unknown or not self.languages or len(set(self.languages)) != len(self.languages):
            raise DataError(f"languages are {list(self.languages)}; expected some of {sorted(LANGUAGES)}, each once.")
        num_sentences = min(len(LANGUAGES[name].sentences) for name in self.languages)
        for field, maximum in (("speakers", MAX_SPEAKERS), ("sentences", num_sentences), ("takes", 99)):
            value = getattr(self, field)
            if not 1 <= value <= maximum:
                raise DataError(f"{field} is {value}; expected 1 to {maximum} for the demo corpus.")
        if self.seed < 0:
            raise DataError(f"seed is {self.seed}; expected 0 or more.")

    def to_record(self) -> dict[str, Any]:
        """Return the content of `corpus.json`, by which an existing corpus is identified."""
        return {"generator": "espeak", "version": GENERATOR_VERSION, **asdict(self), "languages": list(self.languages)}

    def iter_clips(self, language: str) -> Iterator[SynthClip]:
        """Yield every clip of a language, in the order in which it is synthesized."""
        language_index = list(LANGUAGES).index(language)
        for speaker_index, speaker in enumerate(make_speakers(language, self.speakers, self.seed)):
            for take in range(self.takes):
                for sentence in range(self.sentences):
                    for emotion_index, emotion in enumerate(PROSODY_BY_EMOTION):
                        name = f"{speaker.name}-s{sentence + 1}-{emotion}-t{take + 1}.wav"
                        yield SynthClip(
                            path=f"audio/{language}/{name}",
                            emotion=emotion,
                            language=language,
                            speaker=speaker,
                            sentence=f"{language}-s{sentence + 1}",
                            text=LANGUAGES[language].sentences[sentence],
                            rng_key=(self.seed, 2, language_index, speaker_index, take, sentence, emotion_index),
                        )


def _synthesize_language(folder: Path, config: SynthesisConfig, language: str) -> None:
    """Write the clips of a language, and report each on standard output; runs in a worker process."""
    synthesizer = EspeakSynthesizer()
    (folder / "audio" / language).mkdir(parents=True)
    for clip in config.iter_clips(language):
        rng = np.random.default_rng(clip.rng_key)
        parameters = draw_voice_parameters(clip.emotion, clip.speaker, rng)
        wave_T = synthesizer.synthesize(clip.text, clip.speaker.voice, parameters)
        samples_T = apply_effects(wave_T, clip.emotion, clip.speaker, rng)
        with wave.open(str(folder / clip.path), "wb") as file:
            file.setparams((1, 2, ESPEAK_SAMPLE_RATE, len(samples_T), "NONE", "not compressed"))
            file.writeframes(samples_T.astype("<i2").tobytes())
        sys.stdout.write(_CLIP_DONE)
        sys.stdout.flush()


def _worker() -> None:
    folder, language, parameters = sys.argv[1:]
    fields = json.loads(parameters)
    config = SynthesisConfig(**{**fields, "languages": tuple(fields["languages"])})
    _synthesize_language(Path(folder), config, language)


def _run_worker(folder: Path, config: SynthesisConfig, language: str, on_clip: Callable[[], None]) -> None:
    """Synthesize a language in a fresh process; `on_clip` is called after each clip."""
    code = f"from {__spec__.name} import _worker; _worker()"
    command = [sys.executable, "-c", code, str(folder), language, json.dumps(asdict(config))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    output: list[str] = []
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            for line in process.stdout or ():
                if line == _CLIP_DONE:
                    on_clip()
                else:
                    output.append(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        tail = "".join(output[-8:]).strip() or "no output"
        raise DataError(f"synthesizing the {language} clips failed with exit status {process.returncode}: {tail}")


def _find_existing_corpus(folder: Path, config: SynthesisConfig) -> Path | None:
    """Return the manifest of a complete corpus with this configuration, or None if the folder is missing or empty.

    Raises:
        DataError: the folder contains a different or incomplete corpus, or other files.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    remedy = "Choose a different folder, or delete this one to synthesize the corpus again."
    record = folder / "corpus.json"
    if not record.is_file():
        raise DataError(f"{folder} exists but has no corpus.json, so it is not a complete demo corpus. {remedy}")
    actual, expected = json.loads(record.read_text(encoding="utf-8")), config.to_record()
    if actual != expected:
        names = sorted(name for name in {*actual, *expected} if actual.get(name) != expected.get(name))
        differences = ", ".join(f"{name} {actual.get(name)!r} not {expected.get(name)!r}" for name in names)
        raise DataError(f"{folder} contains a demo corpus with different parameters: {differences}. {remedy}")
    paths = ["manifest.csv", *(clip.path for language in config.languages for clip in config.iter_clips(language))]
    missing = [path for path in paths if not (folder / path).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {len(missing)} files, the first is {missing[0]}. {remedy}")
    return folder / "manifest.csv"


def _write_corpus(folder: Path, config: SynthesisConfig) -> None:
    """Write a complete corpus into a new folder, with a progress bar on standard error."""
    clips = [clip for language in config.languages for clip in config.iter_clips(language)]
    folder.mkdir(parents=True)
    with progress_bar(len(clips), "synthesize", "clip") as bar:
        for language in config.languages:
            _run_worker(folder, config, language, bar.update)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([MANIFEST_COLUMNS, *(clip.to_row() for clip in clips)])
    (folder / "corpus.json").write_text(json.dumps(config.to_record(), indent=2) + "\n", encoding="utf-8")


def synthesize_corpus(
    folder: Path,
    *,
    languages: Sequence[str] = ("en", "fi", "fr"),
    speakers: int = 12,
    sentences: int = 8,
    takes: int = 1,
    seed: int = 0,
) -> Path:
    """Synthesize the demo corpus, or reuse the one in `folder` if it has the same parameters.

    The operation is atomic: `folder` appears complete or not at all.

    Args:
        folder: local folder of the corpus.
        languages: languages among those of `sentences.LANGUAGES`.
        speakers: number of speakers per language.
        sentences: number of sentences per language.
        takes: number of recordings of each sentence with each emotion.
        seed: random seed of voices and prosody.

    Returns:
        The manifest: one row per clip, with paths relative to it.

    Raises:
        DataError: `folder` contains other files, a parameter is invalid, or espeakng-loader is not installed.
    """
    config = SynthesisConfig(tuple(languages), speakers, sentences, takes, seed)
    existing = _find_existing_corpus(folder, config)
    if existing is not None:
        return existing
    if importlib.util.find_spec("espeakng_loader") is None:
        raise DataError("The demo corpus needs espeakng-loader: pip install 'lakd-ray[demo]'")
    temporary = folder.parent / f".{folder.name}.making-{uuid.uuid4().hex[:8]}"
    try:
        _write_corpus(temporary, config)
        try:
            storage.publish_folder(temporary, folder)
        except OSError:  # a concurrent process may have written the same corpus
            if _find_existing_corpus(folder, config) is None:
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / "manifest.csv"
