"""Records of folders: a folder is not continued with a different configuration."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from lakd_ray import storage
from lakd_ray.errors import StageError, StorageError
from lakd_ray.runs import record as records

FINGERPRINT = {"stage": "prepare", "languages": ("en", "fi"), "audio": {"max_seconds": 20.0, "min_seconds": 0.1}}


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "stage")


def test_from_start_to_finish(folder):
    assert records.read_record(folder) is None
    assert not records.is_done(folder, FINGERPRINT)
    records.mark_started(folder, FINGERPRINT)
    assert not records.is_done(folder, FINGERPRINT)
    assert records.read_record(folder)["finished"] is None
    storage.write_bytes(f"{folder}/below/out.bin", b"1")
    records.mark_finished(folder, FINGERPRINT, ["below/out.bin"])
    assert records.is_done(folder, FINGERPRINT)
    record = records.read_record(folder)
    assert record["outputs"] == ["below/out.bin"]
    assert record["versions"]["ray"][0].isdigit()


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_of_two_configurations_that_start_together_one_gets_the_folder(where, folder, request):
    if where == "bucket":
        folder = f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    both_have_looked = threading.Barrier(2)

    def claim(fold: int) -> str:
        fingerprint = {"fold": fold}
        assert not records.is_done(folder, fingerprint)
        both_have_looked.wait()
        try:
            records.mark_started(folder, fingerprint)
        except StageError as error:
            return str(error)
        return "claimed"

    with ThreadPoolExecutor(2) as pool:
        second, first = sorted(pool.map(claim, [0, 1]), key=len)
    assert "belongs to a different configuration:\n  fold: found" in first
    assert second == "claimed"


def test_a_folder_with_a_missing_output_is_not_done(folder):
    storage.write_bytes(f"{folder}/a", b"")
    records.mark_finished(folder, FINGERPRINT, ["a", "b"])
    assert not records.is_done(folder, FINGERPRINT)
    storage.write_bytes(f"{folder}/b", b"")
    assert records.is_done(folder, FINGERPRINT)


@pytest.mark.parametrize("finished", [False, True])
def test_a_different_configuration_is_rejected(folder, finished):
    (records.mark_finished if finished else lambda *args: records.mark_started(*args[:2]))(folder, FINGERPRINT, [])
    before = storage.read_bytes(f"{folder}/{records.RECORD_FILE}")
    other = {**FINGERPRINT, "audio": {"max_seconds": 10.0, "min_seconds": 0.1}, "new": 1}
    with pytest.raises(StageError) as caught:
        records.is_done(folder, other)
    message = str(caught.value)
    assert folder in message
    assert "audio.max_seconds: found 20.0, now 10.0" in message
    assert "new: found null, now 1" in message
    assert "min_seconds" not in message
    assert storage.read_bytes(f"{folder}/{records.RECORD_FILE}") == before


def test_differences():
    assert records.find_differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == []
    assert records.find_differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: found 2, now 3"]
    assert records.find_differences({"a": {"b": 1}}, {"a": 1}) == ['a: found {"b": 1}, now 1']
    (line,) = records.find_differences({"a": "x" * 500}, {"a": "y"})
    assert len(line) < 150


def test_digest():
    assert records.digest({"a": 1, "b": [1, 2]}) == records.digest({"b": [1, 2], "a": 1})
    values = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, [1], {}]
    assert len({records.digest(value) for value in values}) == len(values)


def test_corrupted_record(folder):
    storage.write_bytes(f"{folder}/{records.RECORD_FILE}", b"{")
    with pytest.raises(StorageError, match="damaged"):
        records.is_done(folder, FINGERPRINT)
