"""Tests of `lakd scan`: counts, problems and notes of a corpus."""

import json
import os
from collections import Counter
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lakd_ray import storage
from lakd_ray.cli.main import main
from lakd_ray.corpora import IMPORTERS
from lakd_ray.corpora.scan import format_report, scan_corpus
from lakd_ray.errors import ConfigError, DataError

# The published numbers of utterances per session: anger, happiness, excitement, neutral, sadness.
IEMOCAP = {
    1: (229, 135, 143, 384, 194),
    2: (137, 117, 210, 362, 197),
    3: (240, 135, 151, 320, 305),
    4: (327, 65, 238, 258, 143),
    5: (170, 143, 299, 384, 245),
}


def write(file: Path, seconds: float = 0.1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.zeros(round(seconds * 16_000), np.int16), 16_000)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings of 1, 2 and 3 seconds, one that is not audio, one without samples, and one that is missing."""
    for seconds in (1, 2, 3):
        write(tmp_path / f"{seconds}.wav", seconds)
    (tmp_path / "bad.wav").write_bytes(b"RIFF, but nothing that follows it")
    write(tmp_path / "empty.wav", 0)
    (tmp_path / "manifest.csv").write_text(
        "path,emotion,language,speaker,session\n1.wav,anger,en,a,s1\n2.wav,anger,en,b,s1\n3.wav,joy,fi,b,\n"
        "bad.wav,anger,en,a,\nempty.wav,anger,en,a,\nabsent.wav,anger,en,a,\n"
    )
    return tmp_path


def test_scan_counts_rows_and_hours_and_names_problems(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    report = scan_corpus("csv", str(folder), {})
    assert (report.rows, report.hours) == (3, round(6 / 3600, 4))
    assert (report.by_language, report.by_emotion) == ({"en": 2, "fi": 1}, {"anger": 2, "joy": 1})
    assert (report.by_speaker, report.by_session, report.by_split) == ({"a": 1, "b": 2}, {"s1": 2}, {})
    reasons = {Path(problem["path"]).name: problem["reason"] for problem in report.problems}
    assert sorted(reasons) == ["absent.wav", "bad.wav", "empty.wav"]
    assert "cannot decode" in reasons["bad.wav"]
    assert "no samples" in reasons["empty.wav"]
    assert "there is no file absent.wav" in reasons["absent.wav"]
    assert report.notes == ["emotion 'joy' (1 rows) is unknown: map it with `emotion_map: {joy: ...}`"]
    assert sorted(folder.rglob("*")) == before
    assert format_report(report).startswith("3 rows, 0.00 h, 3 problems\nlanguage  en 2, fi 1\n")


def test_scan_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", "csv", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert {"rows", "hours", "by_language", "by_emotion", "by_speaker", "problems"} <= set(content)
    assert all(set(problem) == {"path", "reason"} for problem in content["problems"])
    assert "6/6" not in captured.out  # progress goes to stderr
    assert "scan:" in captured.err
    assert main(["scan", "csv", str(folder / "manifest.csv"), "--set", "columns.emotion=speaker", "language=de"]) == 0
    assert "emotion   a 1, b 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["csv", "nowhere"], "no such folder"),
        (["cvs", "nowhere"], "did you mean `csv`"),
        (["CSV", "nowhere"], "no importer `CSV`; expected one of csv"),
        (["cafe", "nowhere", "--set", "loud=1"], "has no option `loud`"),
        (["tess", "nowhere", "--set", "loud=1"], "has no option `loud`; it has no options"),
        (["csv", "nowhere", "--set", "language"], "expected dotted.key=value"),
        (["espeak", "nowhere"], "no such folder"),
    ],
)
def test_scan_errors(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["scan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_scan_of_parts_of_recordings(folder: Path) -> None:
    (folder / "manifest.csv").write_text(
        "path,emotion,language,speaker,start,end\n3.wav,anger,en,a,,1\n3.wav,anger,en,a,1,2.5\n3.wav,anger,en,a,2.5,\n"
        "3.wav,anger,en,a,2,9\n3.wav,anger,en,a,3,4\n1.wav,anger,en,a,,\n"
    )
    report = scan_corpus("csv", str(folder), {})
    assert (report.rows, report.hours) == (5, round((1 + 1.5 + 0.5 + 1 + 1) / 3600, 4))
    assert [problem["reason"] for problem in report.problems] == ["starts at 3.0 s of a recording of 3.000 s"]


def test_header_that_states_an_impossible_duration_is_a_problem(folder: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 16_000)
    soundfile.write(folder / "2.flac", noise, 16_000)
    content = bytearray((folder / "2.flac").read_bytes())
    content[21:26] = bytes([(content[21] & 0xF0) | 0x0F, 255, 255, 255, 255])  # the number of samples in STREAMINFO
    (folder / "2.wav").write_bytes(content)
    content = bytearray((folder / "1.wav").read_bytes())
    content[24:28] = (0).to_bytes(4, "little")  # a sampling rate of 0
    (folder / "3.wav").write_bytes(content)
    report = scan_corpus("csv", str(folder), {})
    assert report.rows == 1
    reasons = {Path(problem["path"]).name: problem["reason"] for problem in report.problems}
    assert "3.wav" in reasons
    assert reasons["2.wav"].startswith("has a header that states 4294967 s in a file of ")


def test_duplicate_recordings_are_problems(tmp_path: Path) -> None:
    for copy in ("wav", "copy/wav"):
        write(tmp_path / copy / "03a01Wa.wav")
    report = scan_corpus("emodb", str(tmp_path), {})
    assert report.rows == 1
    assert report.problems[0]["reason"].startswith("has the same id 03a01Wa as ")


def test_scan_notes_missing_utterances(tmp_path: Path) -> None:
    for actor in ("01", "02"):
        write(tmp_path / f"{actor}-C-1-1.wav")
    write(tmp_path / "01-C-2-1.wav")
    notes = scan_corpus("cafe", str(tmp_path), {}).notes
    assert "the corpus has 3 of the published 936 utterances" in notes
    assert "emotion sadness has 0 of the published 144 utterances" in notes
    assert scan_corpus("cafe", str(tmp_path), {"intensity": "weak"}).notes == [
        "1 recordings excluded: option intensity: weak"
    ]


def test_published_numbers_add_up() -> None:
    totals = {name: spec.expected_counts[""] for name, spec in IMPORTERS.items() if "" in spec.expected_counts}
    assert totals == {
        "cafe": 936,
        "cremad": 7442,
        "emodb": 535,
        "emozionalmente": 6902,
        "esd": 35_000,
        "nemo": 4481,
        "ravdess": 1440,
        "savee": 480,
        "shemo": 3000,
        "subesco": 7000,
        "tess": 2800,
    }


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All labels of the five sessions of IEMOCAP; the recordings are hard links to one file."""
    root = tmp_path_factory.mktemp("iemocap")
    tiny = write(root / "tiny.dat.wav")
    for session, counts in IEMOCAP.items():
        codes = chain.from_iterable(
            repeat(code, n) for code, n in zip(("ang", "hap", "exc", "neu", "sad"), counts, strict=True)
        )
        lines = []
        wavs = root / f"Session{session}/sentences/wav/Ses{session:02}F_impro01"
        wavs.mkdir(parents=True)
        for number, code in enumerate(chain(codes, ["xxx"])):
            name = f"Ses{session:02}F_impro01_{'FM'[number % 2]}{number:04}"
            os.link(tiny, wavs / f"{name}.wav")
            lines.append(f"[0.0 - 1.0]\t{name}\t{code}\t[2.5, 2.5, 2.5]\n")
        labels = root / f"Session{session}/dialog/EmoEvaluation/Ses{session:02}F_impro01.txt"
        labels.parent.mkdir(parents=True)
        labels.write_text("".join(lines))
    tiny.unlink()
    return root


@pytest.mark.parametrize("merged", [False, True])
def test_complete_iemocap(iemocap: Path, merged: bool) -> None:
    report = scan_corpus("iemocap", str(iemocap), {"merge_excited": merged})
    assert report.problems == []
    assert report.notes == ["5 recordings excluded: the annotators did not agree (xxx)"]
    assert report.by_session == {"Ses01": 1085, "Ses02": 1023, "Ses03": 1151, "Ses04": 1031, "Ses05": 1241}
    emotions = Counter(report.by_emotion)
    assert sum(emotions[name] for name in ("anger", "happiness", "neutral", "sadness")) == (5531 if merged else 4490)
    assert len(report.by_speaker) == 10


def test_missing_utterances_of_iemocap_are_noted(iemocap: Path) -> None:
    for file in sorted((iemocap / "Session2/sentences/wav/Ses02F_impro01").iterdir())[:3]:
        file.unlink()
    report = scan_corpus("iemocap", str(iemocap), {})
    assert (
        "session Ses02, emotion anger or happiness or excitement or neutral or sadness has 1020 of the published 1023 "
        in (" ".join(report.notes))
    )
    assert [problem["reason"] for problem in report.problems] == ["has a label in EmoEvaluation but no recording"] * 3


def test_scan_in_a_bucket(s3: str, tmp_path: Path) -> None:
    for name, seconds in (("01-C-1-1", 1.5), ("02-N-1-1", 0.5)):
        content = write(tmp_path / f"{name}.wav", seconds).read_bytes()
        storage.write_bytes(f"{s3}/scan/Colère/{name}.wav", content)
    storage.write_bytes(f"{s3}/scan/Colère/03-C-1-1.wav", b"no audio")
    report = scan_corpus("cafe", f"{s3}/scan", {})
    assert (report.rows, report.hours) == (2, round(2 / 3600, 4))
    assert [problem["path"] for problem in report.problems] == [f"{s3}/scan/Colère/03-C-1-1.wav"]


def test_scan_rejects_unknown_importers() -> None:
    with pytest.raises(ConfigError, match="expected one of csv"):
        scan_corpus("zzz", "x", {})
    with pytest.raises(DataError, match="is not TESS"):
        scan_corpus("tess", "x", {})
