"""Tests of the demo corpus: complete, reproducible, written atomically, and not separable by one acoustic feature."""

import csv
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lakd_ray.corpora.espeak import synthesis
from lakd_ray.corpora.espeak.prosody import ESPEAK_SAMPLE_RATE, PROSODY_BY_EMOTION
from lakd_ray.corpora.espeak.sentences import LANGUAGES
from lakd_ray.corpora.espeak.speakers import FEMALE_VOICES, MALE_VOICES, make_speakers
from lakd_ray.corpora.espeak.synthesis import MANIFEST_COLUMNS, synthesize_corpus
from lakd_ray.errors import DataError

pytest.importorskip("espeakng_loader", reason="the demo extra is not installed")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_corpus(
        tmp_path_factory.mktemp("synthesized") / "demo", languages=("en", "fi"), speakers=6, sentences=3
    )


def read_rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, ESPEAK_SAMPLE_RATE)
        return np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def mean_f0(wave_T: np.ndarray, window: int = 1200) -> float:
    """Return the median fundamental frequency by autocorrelation, exact enough to distinguish 100 Hz from 200 Hz."""
    frequencies = []
    for start in range(0, len(wave_T) - window, window):
        spectrum = np.abs(np.fft.rfft(wave_T[start : start + window] * np.hanning(window), 4096)) ** 2
        lags = np.fft.irfft(spectrum)
        lag = int(np.argmax(lags[ESPEAK_SAMPLE_RATE // 400 : ESPEAK_SAMPLE_RATE // 60])) + ESPEAK_SAMPLE_RATE // 400
        if lags[lag] > 0.5 * lags[0]:
            frequencies.append(ESPEAK_SAMPLE_RATE / lag)
    return float(np.median(frequencies)) if frequencies else 0.0


def nearest_neighbor_recall(values: np.ndarray, labels: np.ndarray, count: int = 9) -> float:
    """Return the unweighted recall of leave-one-out nearest neighbors on one number per clip."""
    distance = np.abs(values[:, None] - values[None, :])
    np.fill_diagonal(distance, np.inf)
    nearest = labels[np.argsort(distance, axis=1)[:, :count]]
    predicted = np.array([np.bincount(row, minlength=4).argmax() for row in nearest])
    return float(np.mean([np.mean(predicted[labels == label] == label) for label in range(4)]))


def test_every_speaker_has_every_sentence_with_every_emotion(manifest: Path) -> None:
    rows = read_rows(manifest)
    assert tuple(rows[0]) == MANIFEST_COLUMNS
    keys = {(row["language"], row["speaker"], row["sentence"], row["emotion"]) for row in rows}
    assert len(keys) == len(rows) == 2 * 6 * 3 * 4
    assert {row["emotion"] for row in rows} == set(PROSODY_BY_EMOTION)
    assert {row["speaker"] for row in rows if row["language"] == "fi"} == {f"fi-{n:02d}" for n in range(1, 7)}
    seconds = [len(read_samples(manifest.parent / row["path"])) / ESPEAK_SAMPLE_RATE for row in rows]
    assert min(seconds) > 0.5 and max(seconds) < 5


def test_the_same_parameters_give_the_same_bytes(manifest: Path, tmp_path: Path) -> None:
    again = synthesize_corpus(tmp_path / "again", languages=("en", "fi"), speakers=6, sentences=3)
    assert digests(again.parent) == digests(manifest.parent)


def test_different_seeds_give_different_audio(manifest: Path, tmp_path: Path) -> None:
    other = synthesize_corpus(tmp_path / "other", languages=("en",), speakers=1, sentences=1, seed=1)
    path = read_rows(other)[0]["path"]
    assert (other.parent / path).read_bytes() != (manifest.parent / path).read_bytes()


def test_takes_differ(tmp_path: Path) -> None:
    manifest = synthesize_corpus(tmp_path / "takes", languages=("fr",), speakers=1, sentences=1, takes=2)
    digest_by_file = digests(manifest.parent / "audio")
    assert len(digest_by_file) == 8 == len(set(digest_by_file.values()))


def test_no_single_feature_separates_the_emotions(manifest: Path) -> None:
    rows = read_rows(manifest)
    waves = [read_samples(manifest.parent / row["path"]) for row in rows]
    labels = np.array([list(PROSODY_BY_EMOTION).index(row["emotion"]) for row in rows])
    features = {
        "F0": np.array([mean_f0(wave_T) for wave_T in waves]),
        "loudness": np.array([np.sqrt(np.mean(wave_T**2)) for wave_T in waves]),
        "duration": np.array([len(wave_T) for wave_T in waves], float),
    }
    for name, values in features.items():
        assert nearest_neighbor_recall(values, labels) < 0.7, name


def test_pitch_differs_more_between_speakers_than_between_emotions() -> None:
    shift = np.std([rule.pitch[0] for rule in PROSODY_BY_EMOTION.values()])
    for language in LANGUAGES:
        pitches = [speaker.pitch for speaker in make_speakers(language, 36, seed=0)]  # in addition to the variant's
        assert np.std(pitches) > shift


def test_voices_are_not_shared_between_languages_up_to_twelve_speakers() -> None:
    speakers = [speaker for language in LANGUAGES for speaker in make_speakers(language, 12, seed=0)]
    voices = [speaker.voice.split("+")[1] for speaker in speakers]
    assert len(voices) == len(set(voices)) == 12 * len(LANGUAGES)
    finnish = {speaker.voice.split("+")[1] for speaker in make_speakers("fi", 36, seed=0)}
    assert finnish == {*FEMALE_VOICES, *MALE_VOICES}


def test_complete_corpus_is_reused(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # fails if anything is synthesized
    assert synthesize_corpus(manifest.parent, languages=("en", "fi"), speakers=6, sentences=3) == manifest


def test_different_parameters_are_rejected(manifest: Path) -> None:
    with pytest.raises(DataError, match=r"seed 0 not 3\. .*delete"):
        synthesize_corpus(manifest.parent, languages=("en", "fi"), speakers=6, sentences=3, seed=3)


def test_incomplete_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "incomplete" / "audio" / "en").mkdir(parents=True)
    (tmp_path / "incomplete" / "audio" / "en" / "en-01-s1-anger-t1.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"no corpus\.json"):
        synthesize_corpus(tmp_path / "incomplete")


def test_corpus_with_a_missing_file_is_rejected(tmp_path: Path) -> None:
    manifest = synthesize_corpus(tmp_path / "missing", languages=("en",), speakers=1, sentences=1)
    (manifest.parent / read_rows(manifest)[0]["path"]).unlink()
    with pytest.raises(DataError, match="lacks 1 files"):
        synthesize_corpus(tmp_path / "missing", languages=("en",), speakers=1, sentences=1)


def test_interruption_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class InterruptingBar:
        count = 0

        def update(self, n: int = 1) -> None:
            self.count += n
            if self.count == 3:
                raise KeyboardInterrupt

    @contextmanager
    def interrupting_bar(total: int, description: str, unit: str) -> Iterator[InterruptingBar]:
        assert total == 8
        yield InterruptingBar()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(synthesis, "progress_bar", interrupting_bar)
        synthesize_corpus(tmp_path / "demo", languages=("en",), speakers=2, sentences=1)
    assert not any(tmp_path.iterdir())
    assert synthesize_corpus(tmp_path / "demo", languages=("en",), speakers=2, sentences=1).is_file()


def test_failure_of_a_worker_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(DataError, match="synthesizing the en clips failed"):
        synthesize_corpus(tmp_path / "demo", languages=("en",), speakers=1, sentences=1)
    assert not any(tmp_path.iterdir())


def test_error_without_the_demo_extra_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'lakd-ray\[demo\]'"):
        synthesize_corpus(tmp_path / "demo")


@pytest.mark.parametrize(
    "parameters", [{"languages": ("sv",)}, {"languages": ()}, {"speakers": 99}, {"sentences": 0}, {"seed": -1}]
)
def test_invalid_parameters_are_rejected(tmp_path: Path, parameters: dict[str, object]) -> None:
    with pytest.raises(DataError):
        synthesize_corpus(tmp_path / "demo", **parameters)  # type: ignore[arg-type] # some have a wrong type


def test_the_record_names_the_generator(manifest: Path) -> None:
    record = json.loads((manifest.parent / "corpus.json").read_text())
    assert record["generator"] == "espeak" and record["version"] == synthesis.GENERATOR_VERSION


def test_import_needs_neither_torch_nor_ray() -> None:
    code = "import sys, lakd_ray.corpora.espeak.synthesis; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path.cwd()).returncode == 0
