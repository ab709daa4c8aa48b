"""Tests of datasets in the layouts of `datasets` 5.2, written with pyarrow, and of recordings embedded in tables."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from lakd_ray import corpora
from lakd_ray.audio import sources
from lakd_ray.config import CorpusConfig
from lakd_ray.corpora.items import Clip, InvalidItem
from lakd_ray.errors import ConfigError, DataError, StorageError

CLASSES = ["anger", "joy", "neutral"]
COLUMNS = {"emotion": "label", "speaker": "who", "language": "lang", "sentence": "text"}
AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SCHEMA = pa.schema(
    {"audio": AUDIO, "label": pa.int64(), "who": pa.int64(), "lang": pa.string(), "text": pa.string()},
    metadata={
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        "audio": {"_type": "Audio"},
                        "label": {"names": CLASSES, "_type": "ClassLabel"},
                        "who": {"dtype": "int64", "_type": "Value"},
                        "lang": {"dtype": "string", "_type": "Value"},
                        "text": {"dtype": "string", "_type": "Value"},
                    }
                }
            }
        )
    },
)


def wav(samples: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(samples, np.int16), 16_000, format="WAV")
    return buffer.getvalue()


def table(count: int, first: int = 0) -> pa.Table:
    """Return a table in which row n has a recording of n + 1 samples."""
    rows = [
        {
            "audio": {"bytes": wav(n + 1), "path": f"{n}.wav"},
            "label": n % 3,
            "who": n // 3,
            "lang": "en",
            "text": f"t{n}",
        }
        for n in range(first, first + count)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_arrow(content: pa.Table, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(file, content.schema) as stream:
        stream.write_table(content, max_chunksize=2)


def write_parquet(content: pa.Table, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, file, row_group_size=2)


def save(folder: Path, *parts: pa.Table, **state: Any) -> None:
    """Write the files of `Dataset.save_to_disk`."""
    names = [f"data-{number:05}-of-{len(parts):05}.arrow" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        write_arrow(part, folder / name)
    files = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(files | state))
    (folder / "dataset_info.json").write_text("{}")


def read(root: Path, **options: Any) -> tuple[list[Clip], list[InvalidItem]]:
    corpus = CorpusConfig(name="c", importer="huggingface", root=str(root), options={"columns": COLUMNS, **options})
    contents = corpora.read_raw_corpus(corpus, storage_root="")
    return contents.clips, contents.invalid_items


def lengths(clips: list[Clip]) -> list[int]:
    return [soundfile.info(io.BytesIO(sources.read_source(clip.source))).frames for clip in clips]


def test_save_to_disk_of_a_dictionary(tmp_path: Path) -> None:
    save(tmp_path / "train", table(3), table(2, first=3))
    save(tmp_path / "validation", table(1, first=5))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    write_arrow(table(1), tmp_path / "train/cache-0123.arrow")  # not part of the dataset
    clips, problems = read(tmp_path)
    assert problems == []
    assert clips[4] == Clip(
        id="train/data-00001-of-00002.arrow#row=1",
        source=f"{tmp_path}/train/data-00001-of-00002.arrow#row=1",
        emotion="joy",
        language="en",
        speaker="1",
        sentence="t4",
        split="train",
    )
    assert [clip.split for clip in clips] == ["train"] * 5 + ["dev"]
    assert lengths(clips) == [1, 2, 3, 4, 5, 6]
    assert lengths(clips[::-1]) == [6, 5, 4, 3, 2, 1]


def test_save_to_disk_of_one_split(tmp_path: Path) -> None:
    save(tmp_path / "mine", table(2), _split="test")
    assert [clip.split for clip in read(tmp_path)[0]] == ["test", "test"]
    save(tmp_path / "mine", table(2), _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match="Load the dataset and save it again"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "dev"),
        ("data/fold1-00000-of-00001.parquet", "fold1"),
        ("default/test/0000.parquet", "test"),
        ("test.parquet", "test"),
        ("everything.parquet", None),
    ],
)
def test_parquet_splits_are_read_from_file_names(tmp_path: Path, file: str, split: str | None) -> None:
    write_parquet(table(5), tmp_path / file)
    clips, problems = read(tmp_path)
    assert problems == []
    assert [clip.split for clip in clips] == [split] * 5
    assert [clip.emotion for clip in clips] == ["anger", "joy", "neutral", "anger", "joy"]
    assert lengths(clips) == [1, 2, 3, 4, 5]


def test_parquet_shards_that_are_missing_and_rows_without_labels(tmp_path: Path) -> None:
    content = table(3).set_column(1, SCHEMA.field("label"), pa.array([0, -1, None]))
    write_parquet(content, tmp_path / "train-00001-of-00003.parquet")
    clips, problems = read(tmp_path)
    assert len(clips) == 1
    assert sorted((problem.id, problem.reason) for problem in problems) == [
        ("train-00000-of-00003.parquet", "is missing; found 1 of 3 shards"),
        ("train-00001-of-00003.parquet#row=1", "no value for label"),
        ("train-00001-of-00003.parquet#row=2", "no value for label"),
        ("train-00002-of-00003.parquet", "is missing; found 1 of 3 shards"),
    ]


def test_parquet_columns_and_language_by_option(tmp_path: Path) -> None:
    unnamed = table(2).replace_schema_metadata(None).rename_columns(["speech", "emotion", "speaker", "split", "id"])
    write_parquet(unnamed, tmp_path / "x.parquet")
    clips, _ = read(tmp_path, columns={"id": "id"}, language="fi", audio="speech")
    assert [(clip.id, clip.emotion, clip.language, clip.split) for clip in clips] == [
        ("t0", "0", "fi", "en"),  # class numbers without names are unchanged; `emotion_map` can map them
        ("t1", "1", "fi", "en"),
    ]
    assert clips[1].source.endswith("x.parquet#row=1&column=speech")
    assert lengths(clips) == [1, 2]
    assert read(tmp_path, columns={}, language="fi", audio="speech")[0][0].id == "x.parquet#row=0&column=speech"
    with pytest.raises(DataError, match="lacks column audio; found speech, emotion"):
        read(tmp_path, columns={}, language="fi")
    with pytest.raises(DataError, match="lacks column label, lang, who, text"):
        read(tmp_path, audio="speech")
    with pytest.raises(ConfigError, match="importer `huggingface` names path"):
        read(tmp_path, columns={"path": "x"})
    with pytest.raises(ConfigError, match="`audio` of importer `huggingface` is 3"):
        read(tmp_path, audio=3)


def test_damaged_tables_and_different_folders_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found 0 files, but neither \*\.parquet"):
        read(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"cannot read .*train\.parquet"):
        read(tmp_path)


def test_audiofolder_with_metadata(tmp_path: Path) -> None:
    for name in ("train/0.wav", "train/1.wav", "valid/2.wav", "train/stray.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(wav(1))
    (tmp_path / "train/metadata.csv").write_text(
        "file_name,label,who,lang,text\n0.wav,anger,a,en,x\n1.wav,joy,a,en,y\n"
    )
    row = {"file_name": "2.wav", "label": "anger", "who": "b", "lang": "en", "text": "x"}
    (tmp_path / "valid/metadata.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | {'file_name': '3.wav'})}\n")
    clips, problems = read(tmp_path)
    assert [(clip.id, clip.emotion, clip.speaker, clip.split) for clip in clips] == [
        ("train/0.wav", "anger", "a", "train"),
        ("train/1.wav", "joy", "a", "train"),
        ("valid/2.wav", "anger", "b", "dev"),
    ]
    assert clips[2].source == f"{tmp_path}/valid/2.wav"
    assert [problem.source for problem in problems] == [f"{tmp_path}/valid/3.wav", f"{tmp_path}/train/stray.wav"]


def test_row_groups_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(table(6), tmp_path / "x.parquet")
    groups: list[int] = []
    read_row_group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, index, *rest: groups.append(index) or read_row_group(self, index, *rest),
    )
    row_sources = [sources.make_row_source(f"{tmp_path}/x.parquet", row) for row in range(6)]
    for source in sorted(row_sources, key=sources.read_order_key):
        sources.read_source(source)
    assert groups == [0, 1, 2]


def test_rows_with_a_path_and_rows_without_a_recording(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(7))
    values = [{"bytes": None, "path": "a.wav"}, {"bytes": None, "path": None}, {"bytes": None, "path": "b.wav"}]
    write_parquet(pa.table({"audio": pa.array(values, AUDIO)}), tmp_path / "x.parquet")
    source = f"{tmp_path}/x.parquet#row="
    assert sources.read_source(source + "0") == wav(7)
    with pytest.raises(DataError, match="contains no recording"):
        sources.read_source(source + "1")
    with pytest.raises(StorageError, match=r"b\.wav"):
        sources.read_source(source + "2")
    with pytest.raises(DataError, match="has no row 3"):
        sources.read_source(source + "3")
    with pytest.raises(DataError, match="no column speech"):
        sources.read_source(source + "0&column=speech")
    with pytest.raises(StorageError, match="check that the file exists"):
        sources.read_source(f"{tmp_path}/absent.parquet#row=0")
    assert sources.get_source_file(source + "0") == f"{tmp_path}/x.parquet"
    assert sources.get_source_file(f"{tmp_path}/a#row=1.wav") == f"{tmp_path}/a#row=1.wav"
