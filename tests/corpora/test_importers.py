"""Tests of importers with layouts built from the published descriptions of the corpora."""

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lakd_ray import corpora
from lakd_ray.config import CorpusConfig
from lakd_ray.corpora.items import Clip, InvalidItem
from lakd_ray.errors import ConfigError, DataError, StorageError


def read(importer: str, root: Path | str, **settings: Any) -> tuple[list[Clip], list[InvalidItem]]:
    corpus = CorpusConfig(name="c", importer=importer, root=str(root), **settings)
    contents = corpora.read_corpus(corpus, languages=("en", "fi", "fr"), storage_root="unused")
    return contents.clips, contents.invalid_items


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def by_id(clips: list[Clip]) -> dict[str, Clip]:
    return {clip.id: clip for clip in clips}


# --- csv

HEADER = "path,emotion,language,speaker,sentence,session,split,id\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.joinpath("wav").mkdir()
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / "wav" / f"{name}.wav", np.zeros(160, np.int16), 16_000)
    return tmp_path


def test_csv_reads_every_column(folder: Path) -> None:
    outside = touch(folder.parent / "outside" / "d.wav")
    (folder / "manifest.csv").write_text(
        HEADER
        + "wav/b.wav,Anger,EN,s1,hello,one,train,B\n"
        + f"{outside},sadness,fi,s2,,,,A\n\n"
        + "s3://bucket/x.wav,neutral,en,s1,,,dev,C\n"
    )
    clips, problems = read("csv", folder / "manifest.csv")
    assert problems == []
    assert clips == [
        Clip(id="A", source=str(outside), emotion="sadness", language="fi", speaker="s2"),
        Clip("B", f"{folder}/wav/b.wav", "anger", "en", "s1", session="one", sentence="hello", split="train"),
        Clip(id="C", source="s3://bucket/x.wav", emotion="neutral", language="en", speaker="s1", split="dev"),
    ]
    assert all(soundfile.info(clip.source).samplerate == 16_000 for clip in clips if clip.id == "B")
    clips, problems = read("csv", folder)  # the manifest of a folder names recordings in it only
    assert ([clip.id for clip in clips], sorted(item.id for item in problems)) == (["B"], ["A", "C"])
    assert all(item.kind == "missing" and "set `root` to the manifest file" in item.reason for item in problems)
    assert all(item.source not in item.reason for item in problems)  # messages start with the source


def test_csv_id_is_the_path_and_a_byte_order_mark_is_accepted(folder: Path) -> None:
    text = "path,emotion,language,speaker\r\nwav/a.wav,anger,en,s1\r\n"
    (folder / "odd name.csv").write_text(text, encoding="utf-8-sig", newline="")
    clips, _ = read("csv", folder / "odd name.csv")
    assert [clip.id for clip in clips] == ["wav/a.wav"]


def test_csv_columns_are_mapped_and_language_is_set_by_options(folder: Path) -> None:
    (folder / "manifest.csv").write_text("file,label,who\nwav/a.wav,anger,7\n")
    columns = {"path": "file", "emotion": "label", "speaker": "who"}
    clips, _ = read("csv", folder, options={"columns": columns, "language": "fr"})
    assert (clips[0].speaker, clips[0].language) == ("7", "fr")


def test_jsonl_reads_text_and_numbers(folder: Path) -> None:
    rows: list[Any] = [
        {"path": "wav/a.wav", "emotion": "anger", "language": "en", "speaker": 3, "sentence": "one\u2028line"},
        {"path": "wav/b.wav", "emotion": "anger", "language": "en", "speaker": True},
        ["not an object"],
        {"path": "wav/c.wav", "emotion": None, "language": "en", "speaker": "s"},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n", encoding="utf-8")
    clips, problems = read("csv", folder)
    assert [(clip.speaker, clip.sentence) for clip in clips] == [("3", "one\u2028line")]
    reasons = {problem.source.rpartition(" ")[2]: problem.reason for problem in problems}
    assert reasons["2"] == "speaker is True, expected text"
    assert reasons["3"] == "is list, expected an object"
    assert reasons["4"] == "no value for emotion"
    assert "not JSON" in reasons["5"]


def test_csv_invalid_rows_are_problems(folder: Path) -> None:
    (folder / "manifest.csv").write_text(
        "path,emotion,language,speaker\nwav/a.wav,anger,en,s\nwav/b.wav,,en,s\nwav/c.wav,anger,en\nwav/z.wav,anger,en,s\n"
    )
    clips, problems = read("csv", folder)
    assert [clip.id for clip in clips] == ["wav/a.wav"]
    assert [(problem.id, problem.reason) for problem in problems] == [
        ("line-4", "has 3 cells, expected 4"),
        ("wav/b.wav", "no value for emotion"),
        ("wav/z.wav", f"there is no file wav/z.wav, named in {folder}/manifest.csv line 5"),
    ]
    assert problems[2].source == f"{folder}/wav/z.wav"


def test_csv_rows_may_be_parts_of_recordings(folder: Path) -> None:
    (folder / "manifest.csv").write_text(
        "path,emotion,language,speaker,start,end\nwav/a.wav,anger,en,s,0,1.25\nwav/a.wav,anger,en,s,1.25,\n"
        "wav/a.wav,anger,en,s,,0.5\nwav/a.wav,anger,en,s,,\nwav/a.wav,anger,en,s,2,1\nwav/a.wav,anger,en,s,-1,1\n"
        "wav/a.wav,anger,en,s,soon,\nwav/a.wav,anger,en,s,,nan\nwav/a.wav,anger,en,s,,0\n"
    )
    clips, problems = read("csv", folder)
    assert [(clip.id, clip.start, clip.end) for clip in clips] == [
        ("wav/a.wav", None, None),
        ("wav/a.wav#-0.5", None, 0.5),
        ("wav/a.wav#0-1.25", 0.0, 1.25),
        ("wav/a.wav#1.25-", 1.25, None),
    ]
    assert {problem.id: problem.reason for problem in problems} == {
        "line-6": "start is 2.0 s and end is 1.0 s, expected 0 <= start < end",
        "line-7": "start is -1.0 s and end is 1.0 s, expected 0 <= start < end",
        "line-8": "start is 'soon', expected seconds",
        "line-9": "end is 'nan', expected seconds",
        "line-10": "start is None s and end is 0.0 s, expected 0 <= start < end",
    }


def test_jsonl_parts_are_numbers_and_duplicates_are_rejected(folder: Path) -> None:
    row = {"path": "wav/a.wav", "emotion": "anger", "language": "en", "speaker": "s", "start": 1.5, "end": 2}
    (folder / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    assert [(clip.start, clip.end) for clip in read("csv", folder)[0]] == [(1.5, 2.0)]
    (folder / "manifest.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    with pytest.raises(DataError, match=r"id 'wav/a\.wav#1\.5-2' is in line 1 and again in line 2"):
        read("csv", folder)


@pytest.mark.parametrize(("on_disk", "in_manifest"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_csv_finds_accented_files_in_either_unicode_form(folder: Path, on_disk: Any, in_manifest: Any) -> None:
    path = unicodedata.normalize(on_disk, "wav/colère.wav")
    touch(folder / path)
    (folder / "manifest.csv").write_text(
        f"path,emotion,language,speaker\n{unicodedata.normalize(in_manifest, 'wav/colère.wav')},anger,fr,é\n"
    )
    clips, problems = read("csv", folder)
    assert problems == []
    assert Path(clips[0].source).exists()
    assert clips[0].id == "wav/colère.wav"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a row of column names"),
        (b"path,emotion,language,speaker\n", "but no rows"),
        (b"path,emotion,speaker\nwav/a.wav,anger,s\n", "lacks column language; found path, emotion, speaker"),
        (b"path;emotion;language;speaker\na;b;c;d\n", "Separate its cells by commas"),
        (b"path,path,emotion,language,speaker\na,a,b,c,d\n", "more than one column path"),
        (
            "path,emotion,language,speaker\nwav/é.wav,anger,fr,s\n".encode("latin-1"),
            "is not UTF-8: byte 0xe9 in line 2",
        ),
        ("path,emotion,language,speaker\n".encode("utf-16"), "is not UTF-8"),
        (b'path,emotion,language,speaker\nwav/a.wav,anger,en,"s\nwav/b.wav,anger,en,s\n', "is damaged in line 3"),
        (
            HEADER.encode() + b"wav/a.wav,anger,en,s,,,,X\nwav/b.wav,anger,en,s,,,,X\n",
            "'X' is in line 2 and again in line 3",
        ),
        (b"path,emotion,language,speaker\nwav/a.wav,rage,en,s\n", r"unknown emotion 'rage' in wav/a\.wav"),
        (b"path,emotion,language,speaker\nwav/a.wav,anger,de,s\n", r"unknown language 'de' in wav/a\.wav"),
        (b"path,emotion,language,speaker\nwav/z.wav,anger,en,s\n", "has no clips, and 1 problems: .*there is no file"),
    ],
)
def test_unreadable_csv_raises_an_error_with_what_was_found(folder: Path, content: bytes, message: str) -> None:
    (folder / "manifest.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read("csv", folder)


def test_csv_without_a_manifest(folder: Path) -> None:
    with pytest.raises(DataError, match=r"neither manifest\.csv nor manifest\.jsonl"):
        read("csv", folder)
    with pytest.raises(DataError, match="no such folder"):
        read("csv", folder / "nowhere")
    with pytest.raises(DataError, match="there is no manifest"):
        read("csv", folder / "nowhere.csv")
    touch(folder / "manifest.csv")
    touch(folder / "manifest.jsonl")
    with pytest.raises(DataError, match=r"both manifest\.csv and manifest\.jsonl"):
        read("csv", folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["path"]}, "expected a mapping"),
        ({"columns": {"file": "path"}}, "names file; it maps a name to a column"),
        ({"language": 3}, "expected a code"),
        ({"colums": {}}, "has no option `colums`; did you mean `columns`"),
    ],
)
def test_csv_options_are_validated(folder: Path, options: dict[str, Any], message: str) -> None:
    (folder / "manifest.csv").write_text("path,emotion,language,speaker\nwav/a.wav,anger,en,s\n")
    with pytest.raises(ConfigError, match=message):
        read("csv", folder, options=options)


def test_csv_column_named_in_the_options_must_exist(folder: Path) -> None:
    (folder / "manifest.csv").write_text("path,emotion,language,speaker\nwav/a.wav,anger,en,s\n")
    with pytest.raises(DataError, match="lacks column text"):
        read("csv", folder, options={"columns": {"sentence": "text"}})


# --- read_corpus


def test_read_corpus_maps_emotions_and_filters_languages(folder: Path) -> None:
    (folder / "manifest.csv").write_text(
        "path,emotion,language,speaker\nwav/a.wav,rage,en,s\nwav/b.wav,anger,de,s\nwav/c.wav,joy,fi,s\n"
    )
    emotions = {"rage": "anger", "joy": "happiness"}
    clips, _ = read("csv", folder, emotion_map=emotions, languages=("fi", "en"))
    assert [(clip.language, clip.emotion) for clip in clips] == [("en", "anger"), ("fi", "happiness")]
    with pytest.raises(DataError, match="renames rgae, which never occurs; found anger, joy, rage"):
        read("csv", folder, emotion_map={"rgae": "anger"})
    with pytest.raises(DataError, match="`languages` names fr, which never occurs; found de, en, fi"):
        read("csv", folder, languages=("fr", "en"))


def test_read_corpus_substitutes_storage(folder: Path) -> None:
    (folder / "manifest.csv").write_text("path,emotion,language,speaker\nwav/a.wav,anger,en,s\n")
    corpus = CorpusConfig(name="c", root="{storage}/" + folder.name)
    clips = corpora.read_corpus(corpus, languages=("en",), storage_root=f"{folder.parent}/").clips
    assert clips[0].source == f"{folder}/wav/a.wav"


def test_read_corpus_rejects_an_unknown_importer() -> None:
    with pytest.raises(ConfigError, match="no importer `iemocpa`; did you mean `iemocap`"):
        read("iemocpa", "x")
    with pytest.raises(
        ConfigError, match=r"expected one of csv, audiofolder, huggingface, iemocap, fesc, cafe, .*espeak"
    ):
        read("zzz", "x")


def test_every_importer_is_described_and_can_be_loaded() -> None:
    for name, spec in corpora.IMPORTERS.items():
        assert callable(spec.load_importer()), name
        assert spec.layout and spec.license and spec.availability
        assert "\n" not in spec.layout


# --- IEMOCAP

LABELS = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
A-E3:\tval 3; act 2; dom  2;\t()

[10.0100 - 11.3925]\tSes01F_impro01_M000\texc\t[2.5000, 2.5000, 2.5000]
[14.8872 - 18.0175]\tSes01F_impro01_M001\txxx\t[2.5000, 2.5000, 2.5000]
[19.2900 - 20.7875]\tSes01F_impro01_M002\thap\t[2.5000, 3.0000, 2.5000]
[21.3257 - 24.7400]\tSes01F_impro01_F001\tang\t[2.5000, 3.0000, 2.5000]
"""


@pytest.fixture
def iemocap(tmp_path: Path) -> Path:
    root = tmp_path / "IEMOCAP_full_release"
    labels = root / "Session1/dialog/EmoEvaluation"
    touch(labels / "Ses01F_impro01.txt").write_text(LABELS)
    touch(labels / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
    touch(labels / "Categorical/Ses01F_impro01_e2_cat.txt").write_text("Ses01F_impro01_F000 :Neutral; ()\n")
    touch(labels / "Self-evaluation/Ses01F_impro01_f.txt").write_text("Ses01F_impro01_F000 :Anger; ()\n")
    touch(root / "Session1/dialog/transcriptions/Ses01F_impro01.txt").write_text("Ses01F_impro01_F000 [6-8]: Hello.\n")
    touch(root / "Session1/dialog/wav/Ses01F_impro01.wav")
    touch(root / "Session1/dialog/wav/Ses01F_script01_1.wav")
    for name in ("F000", "F001", "M000", "M001", "M002"):
        touch(root / f"Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_{name}.wav")
    touch(root / "Session1/sentences/wav/Ses01F_impro01/._Ses01F_impro01_F000.wav")
    return root


def test_iemocap_speaker_is_the_suffix_of_the_utterance(iemocap: Path) -> None:
    clips, problems = read("iemocap", iemocap)
    assert problems == []
    labels = {clip.id[-4:]: (clip.emotion, clip.speaker, clip.session, clip.language) for clip in clips}
    assert labels == {
        "F000": ("neutral", "Ses01F", "Ses01", "en"),
        "F001": ("anger", "Ses01F", "Ses01", "en"),
        "M000": ("excitement", "Ses01M", "Ses01", "en"),
        "M002": ("happiness", "Ses01M", "Ses01", "en"),
    }
    assert all(Path(clip.source).is_file() for clip in clips)


def test_iemocap_option_merge_excited(iemocap: Path) -> None:
    clips, _ = read("iemocap", iemocap.parent, options={"merge_excited": True})
    assert Counter(clip.emotion for clip in clips) == {"happiness": 2, "neutral": 1, "anger": 1}
    with pytest.raises(ConfigError, match="'yes'; expected true or false"):
        read("iemocap", iemocap, options={"merge_excited": "yes"})


def test_iemocap_sentences_are_read_from_transcriptions(iemocap: Path) -> None:
    file = iemocap / "Session1/dialog/transcriptions/Ses01F_impro01.txt"
    file.write_text("Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\nF: (laughs)\n")
    sentences = {clip.id[-4:]: clip.sentence for clip in read("iemocap", iemocap)[0]}
    assert sentences == {"F000": "Excuse me.", "F001": None, "M000": None, "M002": None}


def test_iemocap_recordings_that_are_not_utterances_are_problems(iemocap: Path) -> None:
    touch(iemocap / "Session1/sentences/wav/Ses01F_impro01/take 2.wav")
    _, problems = read("iemocap", iemocap)
    assert [(problem.id, problem.reason) for problem in problems] == [("take 2", "is not named like an utterance")]


def test_iemocap_problems(iemocap: Path) -> None:
    touch(iemocap / "Session5/sentences/wav/Ses05M_script01_1b/Ses05M_script01_1b_F007.wav")
    touch(iemocap / "Session5/sentences/wav/Ses05M_script01_1b/Ses05M_script01_1b_M008.wav")
    touch(iemocap / "Session5/dialog/EmoEvaluation/Ses05M_script01_1b.txt").write_text(
        "[1.0 - 2.0]\tSes05M_script01_1b_M008\tang\t[1, 1, 1]\n[1.0 - 2.0]\tSes05M_script01_1b_M008\tsad\t[1, 1, 1]\n"
        "[1.0 - 2.0]\tSes05M_script01_1b_M009\tang\t[1, 1, 1]\n"
    )
    clips, problems = read("iemocap", iemocap)
    assert len(clips) == 4
    assert [(problem.id[-4:], problem.reason[:22]) for problem in problems] == [
        ("F007", "has no label in EmoEva"),
        ("M008", "has label 'ang and sad"),
        ("M009", "has a label in EmoEval"),
    ]


def test_iemocap_rejects_a_different_folder_and_a_second_copy(iemocap: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not IEMOCAP: found 0 files.*check the corpus's `root`"):
        read("iemocap", tmp_path / "nowhere")
    touch(tmp_path / "copy/Ses01F_impro01_F000.wav")
    with pytest.raises(DataError, match="Ses01F_impro01_F000 more than once"):
        read("iemocap", tmp_path)


# --- FESC

PAPER_CODES = {1: "anger", 2: "happiness", 3: "neutral", 4: "sadness"}


@pytest.fixture
def fesc(tmp_path: Path) -> Path:
    """Three speakers with codes 1 to 5; the paths in the split files are from a different machine."""
    root = tmp_path / "fesc"
    splits = {
        speaker: {
            f"{speaker}_{code}": {"file_path": f"/cluster/work/{speaker}/{code}.wav", "label": str(code)}
            for code in range(1, 6)
        }
        for speaker in ("TIRE", "TIPE", "JARA")
    }
    for speaker, others in (("TIRE", ("TIPE", "JARA")), ("TIPE", ("JARA", "TIRE")), ("JARA", ("TIRE", "TIPE"))):
        parts = {"test": speaker, "train": others[0], "dev": others[1]}
        for part, part_speaker in parts.items():
            touch(root / speaker / f"{part}.json").write_text(json.dumps(splits[part_speaker]))
        for code in range(1, 6):
            touch(tmp_path / "wav" / speaker / f"{code}.wav")
    return root


def edit(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_fesc_is_the_union_of_the_held_out_speakers(fesc: Path) -> None:
    clips, problems = read("fesc", fesc, options={"labels": PAPER_CODES, "audio": str(fesc.parent / "wav")})
    assert problems == []
    assert len(clips) == 12
    clip = by_id(clips)["JARA_2"]
    assert clip == Clip("JARA_2", f"{fesc.parent}/wav/JARA/2.wav", "happiness", "fi", "JARA")


def test_fesc_uses_paths_that_exist(fesc: Path) -> None:
    real = touch(fesc.parent / "real.wav")
    edit(fesc / "TIRE/test.json", TIRE_1={"file_path": str(real), "label": "1"})
    options = {"labels": PAPER_CODES, "audio": str(fesc.parent / "wav")}
    assert by_id(read("fesc", fesc, options=options)[0])["TIRE_1"].source == str(real)


def test_fesc_counts_excluded_recordings(fesc: Path) -> None:
    touch(fesc.parent / "wav/TIRE/unlisted.wav")
    options = {"labels": PAPER_CODES, "audio": str(fesc.parent / "wav")}
    corpus = CorpusConfig(name="c", importer="fesc", root=str(fesc), options=options)
    excluded = corpora.read_raw_corpus(corpus, storage_root="").excluded
    assert excluded == {"label 5, which both public readers exclude": 3, "not in any split file": 1}


def test_fesc_requires_the_meaning_of_the_codes(fesc: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read("fesc", fesc)
    assert "{1: anger, 2: happiness, 3: neutral, 4: sadness}" in str(caught.value)
    assert "{1: neutral, 2: sadness, 3: happiness, 4: anger}" in str(caught.value)
    with pytest.raises(ConfigError, match="names rage"):
        read("fesc", fesc, options={"labels": {1: "rage"}})


def test_fesc_problems(fesc: Path) -> None:
    edit(fesc / "TIRE/test.json", odd="x", TIRE_9={"file_path": "/cluster/work/TIRE/9.wav", "label": "1"})
    edit(fesc / "TIPE/test.json", seven={"file_path": "a.wav", "label": 7})
    edit(fesc / "JARA/train.json", unknown={"file_path": "a.wav", "label": 1})
    options = {"labels": PAPER_CODES, "audio": str(fesc.parent / "wav")}
    clips, problems = read("fesc", fesc, options=options)
    assert len(clips) == 12
    assert {problem.id: problem.reason.split(",")[0] for problem in problems} == {
        "odd": "is 'x'",
        "TIRE_9": "there is no file /cluster/work/TIRE/9.wav",
        "seven": "has label '7'",
        "unknown": "is not in any test.json",
    }


def test_fesc_rejects_contradictions(fesc: Path) -> None:
    options = {"labels": PAPER_CODES, "audio": str(fesc.parent / "wav")}

    def assert_rejected(message: str) -> None:
        with pytest.raises(DataError, match=message):
            read("fesc", fesc, options=options)

    before = (fesc / "TIRE/train.json").read_text()
    edit(fesc / "TIRE/train.json", TIRE_1={"file_path": "x", "label": "1"})
    assert_rejected("contains 'TIRE_1', which is also in TIRE's test.json")
    edit(fesc / "TIRE/train.json", TIPE_1={"file_path": "x", "label": "2"})
    (fesc / "TIRE/train.json").write_text(before)
    edit(fesc / "TIRE/train.json", TIPE_1={"file_path": "x", "label": "2"})
    assert_rejected("train.json and TIPE's test.json have different labels for 'TIPE_1'")
    (fesc / "TIRE/train.json").write_text(before)
    edit(fesc / "TIRE/test.json", TIPE_1={"file_path": "x", "label": "1"})
    assert_rejected("'TIPE_1' is in the test.json of TIPE and of TIRE")


def test_fesc_rejects_a_recording_with_two_labels(fesc: Path) -> None:
    (fesc.parent / "wav/TIRE/1.wav").unlink()
    (fesc.parent / "wav/TIPE/1.wav").unlink()
    with pytest.raises(DataError, match=r"JARA/1\.wav was found for '.*' and for"):
        read("fesc", fesc, options={"labels": PAPER_CODES, "audio": str(fesc.parent / "wav")})


def test_fesc_rejects_a_different_folder_and_damaged_files(fesc: Path) -> None:
    with pytest.raises(DataError, match="is not FESC"):
        read("fesc", fesc.parent / "wav", options={"labels": PAPER_CODES})
    (fesc / "TIRE/test.json").write_text("[]")
    with pytest.raises(DataError, match="contains a list"):
        read("fesc", fesc, options={"labels": PAPER_CODES})
    (fesc / "TIRE/test.json").write_text("{")
    with pytest.raises(StorageError, match="not valid JSON"):
        read("fesc", fesc, options={"labels": PAPER_CODES})


# --- CaFE


@pytest.fixture
def cafe(tmp_path: Path) -> Path:
    """The complete corpus: 12 actors, 6 sentences, 6 emotions in two intensities, and neutral."""
    folders = {"C": "Colère", "D": "Dégoût", "J": "Joie", "N": "Neutre", "P": "Peur", "S": "Surprise", "T": "Tristesse"}
    for letter, folder in folders.items():
        for intensity in (1,) if letter == "N" else (1, 2):
            for actor in range(1, 13):
                for sentence in range(1, 7):
                    form: Any = "NFD" if actor % 2 else "NFC"  # as an archive that was unpacked on two systems
                    touch(
                        tmp_path
                        / unicodedata.normalize(form, folder)
                        / f"{actor:02}-{letter}-{intensity}-{sentence}.wav"
                    )
    return tmp_path


def test_cafe_labels_are_read_from_file_names(cafe: Path) -> None:
    touch(cafe / "._01-C-1-1.wav")
    touch(cafe / "Readme.pdf")
    clips, problems = read("cafe", cafe)
    assert problems == []
    assert len(clips) == 936
    assert sum(clip.emotion in ("anger", "happiness", "neutral", "sadness") for clip in clips) == 504
    assert {clip.speaker for clip in clips} == {f"{actor:02}" for actor in range(1, 13)}
    clip = by_id(clips)["07-T-2-5"]
    assert (clip.emotion, clip.speaker, clip.sentence, clip.language) == ("sadness", "07", "5", "fr")
    assert Path(clip.source).is_file()


@pytest.mark.parametrize(("intensity", "count"), [("strong", 504), ("weak", 504), ("both", 936)])
def test_cafe_option_intensity_includes_neutral(cafe: Path, intensity: str, count: int) -> None:
    clips, _ = read("cafe", cafe, options={"intensity": intensity})
    assert len(clips) == count
    assert Counter(clip.emotion for clip in clips)["neutral"] == 72


def test_cafe_problems_and_errors(cafe: Path) -> None:
    for name in ("13-C-1-1", "01-N-2-1", "bruit"):
        touch(cafe / f"{name}.wav")
    _, problems = read("cafe", cafe)
    assert [problem.id for problem in problems] == ["01-N-2-1", "13-C-1-1", "bruit"]
    touch(cafe / "copy/01-C-1-1.wav")
    with pytest.raises(DataError, match=r"1 duplicate ids; '01-C-1-1' is the id of .*copy"):
        read("cafe", cafe)
    with pytest.raises(ConfigError, match="'loud'; expected both, weak, strong"):
        read("cafe", cafe, options={"intensity": "loud"})
    with pytest.raises(DataError, match="is not CaFE: found 0 files"):
        read("cafe", cafe / "nowhere")


# --- espeak

SMALL = {"languages": ["fi"], "speakers": 2, "sentences": 1, "takes": 1, "seed": 1}


def test_espeak_synthesizes_its_corpus_once(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="the demo corpus needs lakd-ray[demo]")
    clips, problems = read("espeak", tmp_path / "demo", options=SMALL)
    assert problems == []
    assert {clip.language for clip in clips} == {"fi"}
    assert len({clip.speaker for clip in clips}) == 2
    assert all(clip.session and clip.sentence for clip in clips)
    written = (tmp_path / "demo/manifest.csv").stat().st_mtime_ns
    assert read("espeak", tmp_path / "demo", options=SMALL)[0] == clips
    assert (tmp_path / "demo/manifest.csv").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("root", "options", "message"),
    [
        ("s3://bucket/demo", {}, "in a local folder, and `root` is s3://bucket/demo"),
        ("demo", {"speakers": "12"}, "`speakers` of importer `espeak` is '12'"),
        ("demo", {"languages": "fi"}, "expected a list"),
        ("demo", {"voices": 3}, "has no option `voices`"),
    ],
)
def test_espeak_options_are_validated(root: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read("espeak", root, options=options)
