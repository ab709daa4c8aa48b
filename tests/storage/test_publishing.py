"""Everything that is published is synced before its rename, and its folder after it, so that it survives a power loss.

The tests record the calls of the operating system; they do not cut the power.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from lakd_ray import storage
from lakd_ray.errors import StorageError
from lakd_ray.runs import record
from lakd_ray.runs.state import ResumePoint, RunState
from lakd_ray.storage import publishing

Calls = list[tuple[str, str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Record every sync and every rename, in order: ("sync", path) and ("move", path of the target)."""
    recorded: Calls = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        recorded.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def move(source: str | Path, target: str | Path) -> None:
        assert ("sync", str(source)) in recorded, f"{source} was moved before it was synced"
        recorded.append(("move", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    yield recorded
    moves = [index for index, (action, _) in enumerate(recorded) if action == "move"]
    for index in moves:
        folder = str(Path(recorded[index][1]).parent)
        following = recorded[index + 1 : min((other for other in moves if other > index), default=len(recorded))]
        assert ("sync", folder) in following, f"{recorded[index][1]} was not made durable before the next publish"


def published(calls: Calls, folder: Path) -> list[str]:
    return [str(Path(path).relative_to(folder)) for action, path in calls if action == "move"]


def test_single_files_and_new_folders(calls, tmp_path):
    storage.write_bytes(f"{tmp_path}/a/b/bytes", b"x")
    storage.write_json(f"{tmp_path}/a/json", {})
    storage.write_table(f"{tmp_path}/table.parquet", pa.table({"a": [1]}))
    with storage.atomic_writer(f"{tmp_path}/stream") as stream:
        stream.write(b"x")
    assert published(calls, tmp_path) == ["a/b/bytes", "a/json", "table.parquet", "stream"]
    assert calls[:2] == [("sync", str(tmp_path)), ("sync", f"{tmp_path}/a")]  # the names of the new folders


def test_folder_with_checksums(calls, tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "weights").write_bytes(b"x")
    (source / "deep" / "config").write_bytes(b"x")
    storage.write_checksummed_folder(source, f"{tmp_path}/run/best-0001")
    assert published(calls, tmp_path / "run" / "best-0001") == ["deep/config", "weights", "SEAL.json"]


def test_records_and_states(calls, tmp_path):
    record.mark_started(str(tmp_path), {"a": 1})  # creates the record by a link, only if it does not exist
    created = list(calls)
    assert (created[0][0], created[-1]) == ("sync", ("sync", str(tmp_path)))
    RunState(ResumePoint(1, 0, "resume-0001")).write(str(tmp_path))
    record.mark_finished(str(tmp_path), {"a": 1}, [])
    assert published(calls, tmp_path) == ["state.json", "metrics.jsonl", "record.json"]


def test_local_folder(calls, tmp_path):
    temporary = tmp_path / "temporary"
    (temporary / "deep").mkdir(parents=True)
    (temporary / "deep" / "file").write_text("x")
    storage.publish_folder(temporary, tmp_path / "new" / "corpus")
    synced = [path for action, path in calls if action == "sync"]
    assert {f"{temporary}/deep/file", f"{temporary}/deep", str(temporary)} <= set(synced[:3])
    assert (tmp_path / "new" / "corpus" / "deep" / "file").read_text() == "x"


def test_a_folder_that_cannot_be_synced(tmp_path, monkeypatch):
    """Some network file systems refuse to sync a folder, but any other error of a sync is one of the write."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    storage.write_bytes(f"{tmp_path}/file", b"x")

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="cannot write"):
        storage.write_bytes(f"{tmp_path}/file", b"y")
    assert (tmp_path / "file").read_bytes() == b"x"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_failed_upload_publishes_nothing(s3, tmp_path, monkeypatch):
    source = tmp_path / "file"
    source.write_bytes(b"12345")
    monkeypatch.setattr(publishing, "copy_stream", lambda content, stream, size: stream.write(b"1"))
    with pytest.raises(OSError, match="different size"):
        storage.publish(source, f"{s3}/publish/file")
    assert not storage.exists(f"{s3}/publish/file")
