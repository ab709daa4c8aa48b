"""The synthesised demo corpus: whole, repeatable, never half written, and not separable by one number."""

import csv
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from lakd_ray.corpora.espeak import synthesis
from lakd_ray.corpora.espeak.sentences import FEMALE_VOICES, LANGUAGES, MALE_VOICES, PROSODY_BY_EMOTION, make_speakers
from lakd_ray.corpora.espeak.synthesis import ESPEAK_SAMPLE_RATE, MANIFEST_COLUMNS, synthesize_corpus
from lakd_ray.errors import DataError

pytest.importorskip("espeakng_loader", reason="the demo extra is not installed")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_corpus(tmp_path_factory.mktemp("made") / "demo", languages=("en", "fi"), speakers=6, sentences=3)


def read(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, ESPEAK_SAMPLE_RATE)
        return np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def mean_f0(wave_T: np.ndarray, window: int = 1200) -> float:
    """Median fundamental frequency by autocorrelation, good enough to tell 100 Hz from 200 Hz."""
    found = []
    for start in range(0, len(wave_T) - window, window):
        spectrum = np.abs(np.fft.rfft(wave_T[start : start + window] * np.hanning(window), 4096)) ** 2
        lags = np.fft.irfft(spectrum)
        lag = int(np.argmax(lags[ESPEAK_SAMPLE_RATE // 400 : ESPEAK_SAMPLE_RATE // 60])) + ESPEAK_SAMPLE_RATE // 400
        if lags[lag] > 0.5 * lags[0]:
            found.append(ESPEAK_SAMPLE_RATE / lag)
    return float(np.median(found)) if found else 0.0


def neighbour_recall(values: np.ndarray, labels: np.ndarray, neighbours: int = 9) -> float:
    """Unweighted recall of leave-one-out nearest neighbours on one number per clip."""
    distance = np.abs(values[:, None] - values[None, :])
    np.fill_diagonal(distance, np.inf)
    nearest = labels[np.argsort(distance, axis=1)[:, :neighbours]]
    guess = np.array([np.bincount(row, minlength=4).argmax() for row in nearest])
    return float(np.mean([np.mean(guess[labels == label] == label) for label in range(4)]))


def test_every_speaker_says_every_sentence_with_every_emotion(manifest: Path) -> None:
    rows = read(manifest)
    assert tuple(rows[0]) == MANIFEST_COLUMNS
    said = {(row["language"], row["speaker"], row["sentence"], row["emotion"]) for row in rows}
    assert len(said) == len(rows) == 2 * 6 * 3 * 4
    assert {row["emotion"] for row in rows} == set(PROSODY_BY_EMOTION)
    assert {row["speaker"] for row in rows if row["language"] == "fi"} == {f"fi-{n:02d}" for n in range(1, 7)}
    seconds = [len(samples(manifest.parent / row["path"])) / ESPEAK_SAMPLE_RATE for row in rows]
    assert min(seconds) > 0.5 and max(seconds) < 5


def test_the_same_parameters_give_the_same_bytes(manifest: Path, tmp_path: Path) -> None:
    again = synthesize_corpus(tmp_path / "again", languages=("en", "fi"), speakers=6, sentences=3)
    assert digests(again.parent) == digests(manifest.parent)


def test_another_seed_sounds_different(manifest: Path, tmp_path: Path) -> None:
    other = synthesize_corpus(tmp_path / "other", languages=("en",), speakers=1, sentences=1, seed=1)
    path = read(other)[0]["path"]
    assert (other.parent / path).read_bytes() != (manifest.parent / path).read_bytes()


def test_takes_differ(tmp_path: Path) -> None:
    manifest = synthesize_corpus(tmp_path / "takes", languages=("fr",), speakers=1, sentences=1, takes=2)
    found = digests(manifest.parent / "audio")
    assert len(found) == 8 == len(set(found.values()))


def test_no_single_number_gives_the_emotion_away(manifest: Path) -> None:
    rows = read(manifest)
    waves = [samples(manifest.parent / row["path"]) for row in rows]
    labels = np.array([list(PROSODY_BY_EMOTION).index(row["emotion"]) for row in rows])
    numbers = {
        "F0": np.array([mean_f0(wave_T) for wave_T in waves]),
        "loudness": np.array([np.sqrt(np.mean(wave_T**2)) for wave_T in waves]),
        "duration": np.array([len(wave_T) for wave_T in waves], float),
    }
    for name, values in numbers.items():
        assert neighbour_recall(values, labels) < 0.7, name


def test_speakers_differ_more_than_emotions_shift_them() -> None:
    shift = np.std([rule.pitch[0] for rule in PROSODY_BY_EMOTION.values()])
    for language in LANGUAGES:
        habits = [who.pitch for who in make_speakers(language, 36, seed=0)]  # on top of the variants' own pitches
        assert np.std(habits) > shift


def test_voices_are_not_shared_between_languages_up_to_twelve_speakers() -> None:
    voices = [who.voice.split("+")[1] for language in LANGUAGES for who in make_speakers(language, 12, seed=0)]
    assert len(voices) == len(set(voices)) == 12 * len(LANGUAGES)
    assert {who.voice.split("+")[1] for who in make_speakers("fi", 36, seed=0)} == {*FEMALE_VOICES, *MALE_VOICES}


def test_a_whole_corpus_is_reused(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # nothing may be spoken
    assert synthesize_corpus(manifest.parent, languages=("en", "fi"), speakers=6, sentences=3) == manifest


def test_other_parameters_are_refused(manifest: Path) -> None:
    with pytest.raises(DataError, match=r"seed 0 not 3\. .*delete"):
        synthesize_corpus(manifest.parent, languages=("en", "fi"), speakers=6, sentences=3, seed=3)


def test_a_half_written_folder_is_not_taken_for_whole(tmp_path: Path) -> None:
    (tmp_path / "half" / "audio" / "en").mkdir(parents=True)
    (tmp_path / "half" / "audio" / "en" / "en-01-s1-anger-t1.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"no corpus\.json"):
        synthesize_corpus(tmp_path / "half")


def test_a_corpus_that_lost_a_file_is_refused(tmp_path: Path) -> None:
    manifest = synthesize_corpus(tmp_path / "lost", languages=("en",), speakers=1, sentences=1)
    (manifest.parent / read(manifest)[0]["path"]).unlink()
    with pytest.raises(DataError, match="lacks 1 files"):
        synthesize_corpus(tmp_path / "lost", languages=("en",), speakers=1, sentences=1)


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, clips: int) -> None:
        assert clips == 8
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize_corpus(tmp_path / "demo", languages=("en",), speakers=2, sentences=1, progress=interrupt)
    assert not any(tmp_path.iterdir())
    assert synthesize_corpus(tmp_path / "demo", languages=("en",), speakers=2, sentences=1).is_file()


def test_a_failing_worker_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(DataError, match="speaking the en clips failed"):
        synthesize_corpus(tmp_path / "demo", languages=("en",), speakers=1, sentences=1)
    assert not any(tmp_path.iterdir())


def test_without_the_demo_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'lakd-ray\[demo\]'"):
        synthesize_corpus(tmp_path / "demo")


@pytest.mark.parametrize(
    "wrong", [{"languages": ("sv",)}, {"languages": ()}, {"speakers": 99}, {"sentences": 0}, {"seed": -1}]
)
def test_what_cannot_be_spoken_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(DataError):
        synthesize_corpus(tmp_path / "demo", **wrong)  # type: ignore[arg-type] # wrong on purpose


def test_the_record_names_the_generator(manifest: Path) -> None:
    record = json.loads((manifest.parent / "corpus.json").read_text())
    assert record["generator"] == "espeak" and record["version"] == synthesis.GENERATOR_VERSION


def test_import_needs_neither_torch_nor_ray() -> None:
    code = "import sys, lakd_ray.corpora.espeak.synthesis; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path.cwd()).returncode == 0
