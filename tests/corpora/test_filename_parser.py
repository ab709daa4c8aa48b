"""Tests of importers that read labels from file names, folder names, or one table of labels."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lakd_ray import corpora
from lakd_ray.audio import sources
from lakd_ray.config import CorpusConfig
from lakd_ray.corpora.items import Clip, InvalidItem
from lakd_ray.errors import ConfigError, DataError


def read(importer: str, root: Path, **settings: Any) -> tuple[dict[str, Clip], list[InvalidItem], Counter[str]]:
    corpus = CorpusConfig(name="c", importer=importer, root=str(root), **settings)
    contents = corpora.read_raw_corpus(corpus, storage_root="")
    return {clip.id: clip for clip in contents.clips}, contents.invalid_items, contents.excluded


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# Importer, path of a recording, and its expected id, emotion, language, speaker and sentence.
EXAMPLES = [
    ("emodb", "wav/03a01Wa.wav", ("03a01Wa", "anger", "de", "03", "a01")),
    ("emodb", "wav/16b10Lb.wav", ("16b10Lb", "boredom", "de", "16", "b10")),
    ("ravdess", "Actor_12/03-01-03-02-01-02-12.wav", ("03-01-03-02-01-02-12", "happiness", "en", "12", "01")),
    ("cremad", "AudioWAV/1001_DFA_ANG_XX.wav", ("1001_DFA_ANG_XX", "anger", "en", "1001", "DFA")),
    ("cremad", "AudioWAV/1040_ITH_SAD_X.wav", ("1040_ITH_SAD_X", "sadness", "en", "1040", "ITH")),
    ("tess", "YAF_happy/YAF_back_happy.wav", ("YAF_back_happy", "happiness", "en", "YAF", "back")),
    ("tess", "OAF_Pleasant_surprise/OAF_bar_ps.wav", ("OAF_bar_ps", "surprise", "en", "OAF", "bar")),
    ("tess", "OAF_neutral/OA_bite_neutral.wav", ("OA_bite_neutral", "neutral", "en", "OAF", "bite")),
    ("savee", "ALL/JK_sa03.wav", ("JK_sa03", "sadness", "en", "JK", None)),
    ("savee", "AudioData/DC/su15.wav", ("DC_su15", "surprise", "en", "DC", None)),
    ("esd", "0011/Angry/0011_000351.wav", ("0011_000351", "anger", "en", "0011", "en-001")),
    ("esd", "0001/Surprise/test/0001_001750.wav", ("0001_001750", "surprise", "zh", "0001", "zh-350")),
    ("oreau", "OreauFR_02/sessions/01a01Ca.wav", ("01a01Ca", "anger", "fr", "01", "a01")),
    ("nemo", "samples/SB0_sadness_07.wav", ("SB0_sadness_07", "sadness", "pl", "SB0", "07")),
    ("subesco", "F_02_MONIKA_S_1_ANGRY_5.wav", ("F_02_MONIKA_S_1_ANGRY_5", "anger", "bn", "F_02", "1")),
    ("shemo", "male/M07W03.wav", ("M07W03", "surprise", "fa", "M07", None)),
    ("cafe", "Cole╠Çre/12-C-2-6.wav", ("12-C-2-6", "anger", "fr", "12", "6")),
]


@pytest.mark.parametrize(("importer", "path", "expected"), EXAMPLES, ids=[f"{row[0]}-{row[2][0]}" for row in EXAMPLES])
def test_labels_of_file_names(tmp_path: Path, importer: str, path: str, expected: tuple[Any, ...]) -> None:
    invalid, hidden = tmp_path / "Émile/odd take.wav", tmp_path / f"{path.rpartition('/')[0]}/._{Path(path).name}"
    touch(tmp_path / path, invalid, hidden, tmp_path / "Readme.txt")
    clips, problems, _ = read(importer, tmp_path)
    (clip,) = clips.values()
    assert (clip.id, clip.emotion, clip.language, clip.speaker, clip.sentence) == expected
    assert clip.source == f"{tmp_path}/{path}"
    assert [(problem.id, problem.source) for problem in problems] == [("odd take", str(invalid))]
    assert problems[0].reason.startswith("is not named ")


@pytest.mark.parametrize("importer", sorted({row[0] for row in EXAMPLES}))
def test_different_corpus_is_rejected(tmp_path: Path, importer: str) -> None:
    touch(tmp_path / "hello.wav")
    with pytest.raises(
        DataError, match=r"is not \w.*: found 1 files, for instance hello\.wav.*check the corpus's `root`"
    ):
        read(importer, tmp_path)


def test_recordings_converted_to_a_different_format_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "03a01Wa.FLAC", tmp_path / "03a01Na.m4a")
    assert sorted(read("emodb", tmp_path)[0]) == ["03a01Na", "03a01Wa"]


def test_folder_names_need_not_be_utf_8(tmp_path: Path) -> None:
    folder = bytes(tmp_path) + b"/Col\xe8re"  # Latin-1, as in an old archive unpacked on a UTF-8 system
    Path(folder.decode("utf-8", "surrogateescape")).mkdir()
    with open(folder + b"/01-C-1-1.wav", "wb") as file:
        file.write(b"some audio")
    clips, problems, _ = read("cafe", tmp_path)
    assert problems == []
    source = clips["01-C-1-1"].source
    assert source.encode() and source.endswith("/Col%E8re/01-C-1-1.wav")
    assert sources.read_source(source) == b"some audio"


def test_recordings_excluded_by_options_are_counted(tmp_path: Path) -> None:
    touch(
        tmp_path / "03-01-01-01-01-01-01.wav",
        tmp_path / "03-02-01-01-01-01-01.wav",
        tmp_path / "01-01-01-01-01-01-01.mp4",
    )
    clips, problems, excluded = read("ravdess", tmp_path)
    assert (list(clips), problems) == (["03-01-01-01-01-01-01"], [])
    assert excluded == {"option channel: speech": 1, "video; its audio is a separate recording": 1}
    assert len(read("ravdess", tmp_path, options={"channel": "both"})[0]) == 2
    with pytest.raises(ConfigError, match="'loud'; expected speech, song, both"):
        read("ravdess", tmp_path, options={"channel": "loud"})


def test_esd_languages_and_contradictions(tmp_path: Path) -> None:
    touch(tmp_path / "0001/Sad/0001_001051.wav", tmp_path / "0012/Sad/0012_001051.wav")
    touch(tmp_path / "0012/Sad/0012_000001.wav", tmp_path / "0012/0012_001751.wav")
    clips, problems, excluded = read("esd", tmp_path, options={"languages": ["en"]})
    assert list(clips) == ["0012_001051"]
    assert excluded == {"option languages: en": 1}
    assert sorted(problem.reason for problem in problems) == [
        "has number 001751, expected 000001 to 001750",
        "is neutral by its number and sadness by its folder",
    ]
    for languages in ("en", [], ["fr"]):
        with pytest.raises(ConfigError, match="expected a list of en, zh"):
            read("esd", tmp_path, options={"languages": languages})


def test_subesco_unknown_emotion_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path / "F_02_MONIKA_S_1_ANGRY_5.wav", tmp_path / "F_02_MONIKA_S_1_BORED_5.wav")
    _, problems, _ = read("subesco", tmp_path)
    assert [problem.reason.split(",")[0] for problem in problems] == ["has emotion BORED"]


# --- audiofolder


def test_audiofolder(tmp_path: Path) -> None:
    touch(tmp_path / "EN/anna/Anger/1.wav", tmp_path / "fi/ben/rage/2.opus", tmp_path / "fi/ben/3.wav")
    clips, problems, _ = read("audiofolder", tmp_path)
    assert [(clip.id, clip.language, clip.speaker, clip.emotion) for clip in clips.values()] == [
        ("EN/anna/Anger/1.wav", "en", "anna", "anger"),
        ("fi/ben/rage/2.opus", "fi", "ben", "rage"),
    ]
    assert [problem.id for problem in problems] == ["fi/ben/3.wav"]
    shutil.rmtree(tmp_path / "fi")
    shutil.rmtree(tmp_path / "EN")
    touch(tmp_path / "anger/1.wav")
    with pytest.raises(DataError, match=r"found 1 recordings, for instance anger/1\.wav\. Expected <language>"):
        read("audiofolder", tmp_path)


# --- Emozionalmente and MSP-Podcast: one table of labels


def test_emozionalmente(tmp_path: Path) -> None:
    touch(*(tmp_path / f"audio/{name}.wav" for name in ("a", "b", "c", "d")))
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/samples.csv").write_text(
        "file_name,actor,sentence,emotion_expressed\n"
        "a.wav,7,Ciao,joy\nb.wav,7,Ciao,neutrality\nc.wav,8,Ciao,envy\ne.wav,8,Ciao,anger\n"
    )
    clips, problems, _ = read("emozionalmente", tmp_path)
    assert clips["a"] == Clip("a", f"{tmp_path}/audio/a.wav", "happiness", "it", "7", sentence="Ciao")
    assert clips["b"].emotion == "neutral"
    table = f"{tmp_path}/metadata/samples.csv"
    assert {problem.id: problem.reason for problem in problems} == {
        "c": "has emotion 'envy', expected one of anger, disgust, fear, joy, neutrality, sadness, surprise",
        "e": f"has a label in {table}; has no recording",
        "d": f"has no label in {table}",
    }


def test_label_table_must_be_complete(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    with pytest.raises(DataError, match=r"is not Emozionalmente: found 1 files\. Expected one samples\.csv"):
        read("emozionalmente", tmp_path)
    (tmp_path / "samples.csv").write_text("file_name,emotion\na.wav,joy\n")
    with pytest.raises(DataError, match="lacks column actor, emotion_expressed; found file_name, emotion"):
        read("emozionalmente", tmp_path)
    (tmp_path / "samples.csv").write_text("file_name,actor,emotion_expressed\na.wav,1,joy\na.wav,1,fear\n")
    with pytest.raises(DataError, match=r"names a\.wav again in line 3"):
        read("emozionalmente", tmp_path)


@pytest.fixture
def podcast(tmp_path: Path) -> Path:
    rows = [
        ("0001_0001", "A", "12", "Train"),
        ("0001_0002", "N", "12", "Development"),
        ("0002_0001", "H", "Unknown", "Test2"),
        ("0003_0001", "X", "13", "Train"),
        ("0003_0002", "C", "13", "Test1"),
        ("0003_0003", "Q", "13", "Test1"),
        ("0004_0001", "", "", "Test3"),
    ]
    lines = [f"MSP-PODCAST_{name}.wav,{code},4.1,3.0,5.0,{speaker},Male,{part}\n" for name, code, speaker, part in rows]
    (tmp_path / "Labels").mkdir()
    (tmp_path / "Labels/labels_consensus.csv").write_text(
        "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n" + "".join(lines)
    )
    touch(*(tmp_path / f"Audios/MSP-PODCAST_{row[0]}.wav" for row in rows))
    return tmp_path


def test_msp_podcast(podcast: Path) -> None:
    clips, problems, excluded = read("msp_podcast", podcast)
    labels = {name[-9:]: (clip.emotion, clip.speaker, clip.session, clip.split) for name, clip in clips.items()}
    assert labels == {
        "0001_0001": ("anger", "12", "0001", "train"),
        "0001_0002": ("neutral", "12", "0001", "dev"),
        "0003_0002": ("contempt", "13", "0003", "test"),
    }
    assert [problem.reason.split(",")[0] for problem in problems] == ["has EmoClass 'Q'"]
    assert sorted(excluded.values()) == [1, 1, 1]


def test_msp_podcast_option_unknown_speakers(podcast: Path) -> None:
    clips, _, _ = read("msp_podcast", podcast, options={"unknown_speakers": True})
    assert clips["MSP-PODCAST_0002_0001"].speaker == "Unknown-0002"
    with pytest.raises(ConfigError, match="'yes'; expected true or false"):
        read("msp_podcast", podcast, options={"unknown_speakers": "yes"})
