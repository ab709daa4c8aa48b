"""Inputs of bulk predictions from folders and manifests."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.samples import BAD, LENGTHS

from lakd_ray.errors import DataError, StorageError
from lakd_ray.inference.bulk.inputs import InputEntry, find_inputs

ROWS = [
    {"path": "sub/a.wav", "id": "1", "language": "en", "other": "x"},
    {"path": "/abs/b.wav", "id": "2", "language": "", "other": ""},
    {"path": "s3://bucket/c.wav", "id": "3", "language": "", "other": ""},
]


def manifest(folder, kind: str, rows: list[dict]):
    file = folder / f"list.{kind}"
    if kind == "csv":
        names = list(rows[0])
        file.write_text("\n".join(",".join(map(str, row)) for row in [names, *[row.values() for row in rows]]))
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return str(file)


def test_a_folder(clips):
    inputs = find_inputs(str(clips))
    assert [entry.id for entry in inputs.entries] == sorted([*LENGTHS, *BAD])
    assert inputs.entries[0] == InputEntry("a.wav", f"{clips}/a.wav", None)
    assert find_inputs(f"{clips}/").entries[0].id == "a.wav"
    assert find_inputs(str(clips)).digest == inputs.digest


def test_a_changed_or_new_file_changes_the_digest(tmp_path):
    digests = set()
    for name, content in (("a.wav", b"1"), ("a.wav", b"22"), ("b.wav", b"")):
        (tmp_path / name).write_bytes(content)
        digests.add(find_inputs(str(tmp_path)).digest)
    (tmp_path / "c.txt").touch()
    digests.add(find_inputs(str(tmp_path)).digest)
    assert len(digests) == 3


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest(tmp_path, kind):
    expected = [("1", f"{tmp_path}/sub/a.wav", "en"), ("2", "/abs/b.wav", None), ("3", "s3://bucket/c.wav", None)]
    assert find_inputs(manifest(tmp_path, kind, ROWS)).entries == [InputEntry(*values) for values in expected]
    paths_only = find_inputs(manifest(tmp_path, kind, [{"path": row["path"]} for row in ROWS]))
    assert [(entry.id, entry.path) for entry in paths_only.entries] == [
        (row["path"], path) for row, (_, path, _) in zip(ROWS, expected, strict=True)
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("rows", "message"), [
    ([{"file": "a.wav"}], "has columns file; expected one named path"),
    ([{"path": "a.wav", "id": "1"}, {"path": " ", "id": "2"}], "has the path ' '"),
    ([{"path": "a.wav", "language": "English"}], "has the language 'English'"),
    ([{"path": "a.wav"}, {"path": "a.wav"}], r"has the id 'a.wav' of \w+ \d"),
    ([{"path": "a.wav", "id": "1"}, {"path": "b.wav", "id": "1"}], "has the id '1' of"),
])  # fmt: skip
def test_an_invalid_manifest(tmp_path, kind, rows, message):
    with pytest.raises(DataError, match=message):
        find_inputs(manifest(tmp_path, kind, rows))


def test_invalid_lines_are_counted_and_the_first_are_listed(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"path": "a.wav"}\n' + "no JSON\n" * 7)
    with pytest.raises(DataError, match=r"(?s)line 2 is not JSON.*line 6 [^\n]*\n  and 2 more$") as caught:
        find_inputs(str(file))
    assert "line 7" not in str(caught.value)


def test_no_recordings(tmp_path):
    with pytest.raises(DataError, match="holds no recordings: expected a folder"):
        find_inputs(str(tmp_path))
    (tmp_path / "x.csv").write_text("path\n")
    with pytest.raises(DataError, match="no rows"):
        find_inputs(str(tmp_path / "x.csv"))
    (tmp_path / "x.parquet").write_bytes(b"none")
    with pytest.raises(DataError, match="cannot read"):
        find_inputs(str(tmp_path / "x.parquet"))
    with pytest.raises(StorageError, match="does not exist"):
        find_inputs(str(tmp_path / "absent.csv"))
