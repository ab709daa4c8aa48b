"""The storage functions on a disk and in a bucket of a real S3 server."""

import errno
import os
import resource
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from lakd_ray import storage
from lakd_ray.errors import StorageError


@pytest.fixture(params=["disk", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an empty location; temporary files go to `tmp_path / "scratch"`."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    if request.param == "disk":
        return str(tmp_path / "location")
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create a local folder of two files, one of them in a subfolder."""
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "weights.bin").write_bytes(bytes(range(256)) * 20_000)
    (source / "deep" / "name ä.json").write_text("{}")
    return source


def names(location: str) -> list[str]:
    """Return the files below a folder, relative to it."""
    return [info.location.removeprefix(location + "/") for info in storage.list_files(location)]


def test_files(location):
    file = storage.join(location, "a", "b.txt")
    assert not storage.exists(file)
    assert names(location) == []
    assert storage.list_folders(location) == []
    storage.write_bytes(file, b"first")
    storage.write_bytes(file, b"second")
    storage.write_bytes(storage.join(location, "c.txt"), b"")
    storage.write_json(storage.join(location, "z/d.json"), {"ä": [1, None]})
    assert storage.read_bytes(file) == b"second"
    assert storage.read_bytes(storage.join(location, "c.txt")) == b""
    assert storage.read_json(storage.join(location, "z/d.json")) == {"ä": [1, None]}
    assert storage.exists(file)
    assert storage.exists(location)
    assert names(location) == ["a/b.txt", "c.txt", "z/d.json"]
    assert storage.list_folders(location) == ["a", "z"]
    storage.delete(file)
    assert not storage.exists(file)
    storage.delete(location)
    assert names(location) == []
    storage.delete(location)


def test_large_file_in_parts(location):
    content = bytes(range(256)) * (24 * 4096)  # 24 MiB, more than one part of an upload
    storage.write_bytes(location, content)
    assert storage.read_bytes(location) == content


def test_tables(location):
    table = pa.table({"name": ["a", "b", "c"], "value": [1.5, None, 2.0]})
    storage.write_table(storage.join(location, "t.parquet"), table, row_group_size=2)
    assert storage.read_table(storage.join(location, "t.parquet")).equals(table)
    assert storage.read_table(storage.join(location, "t.parquet"), columns=["name"]).column_names == ["name"]


@pytest.mark.parametrize("read", [storage.read_bytes, storage.read_json, storage.read_table])
def test_missing_file(location, read):
    with pytest.raises(StorageError, match="does not exist") as caught:
        read(storage.join(location, "absent"))
    assert storage.join(location, "absent") in str(caught.value)


def test_damaged_json(location):
    storage.write_bytes(location, b'{"a": ')
    with pytest.raises(StorageError, match=r"not valid JSON.*damaged"):
        storage.read_json(location)


def test_damaged_table(location):
    storage.write_table(location, pa.table({"a": list(range(1000))}))
    storage.write_bytes(location, storage.read_bytes(location)[:-20])
    with pytest.raises(StorageError, match="damaged"):
        storage.read_table(location)


def test_a_failed_write_leaves_no_files(location, tmp_path):
    file = storage.join(location, "file")
    with pytest.raises(KeyError), storage.atomic_writer(file) as stream:
        stream.write(b"half")
        raise KeyError
    assert names(location) == []
    storage.write_bytes(file, b"complete")
    with pytest.raises(KeyError), storage.atomic_writer(file) as stream:
        stream.write(b"half")
        raise KeyError
    assert storage.read_bytes(file) == b"complete"
    assert names(location) == ["file"]
    assert list((tmp_path / "scratch").iterdir()) == []


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """Limit the size of this process's files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_rows(location: str, content: bytes) -> None:
    storage.write_table(location, pa.table({"audio": [content]}))


@pytest.mark.parametrize("write", [storage.write_bytes, write_rows])
def test_file_larger_than_the_disk(location, tmp_path, write):
    file = storage.join(location, "file")
    storage.write_bytes(file, b"earlier")
    with (
        small_disk(4_000_000),
        pytest.raises(StorageError, match=r"cannot write .*needs at least \d\.\d MB, and .* free in"),
    ):
        write(file, os.urandom(8_000_000))
    assert names(location) == ["file"]
    assert storage.read_bytes(file) == b"earlier"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_full_disk(tmp_path):
    """The disk is a real one of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        storage.write_bytes(f"{disk}/earlier", bytes(1_000_000))
        with pytest.raises(StorageError) as caught:
            storage.write_bytes(f"{disk}/large", bytes(1_500_000))
        words = (
            f"cannot write {disk}/large: No space left on device: the file needs at least 1.5 MB, and 1.1 MB are free"
        )
        assert words in str(caught.value)
        assert [info.name for info in storage.list_files(str(disk))] == ["earlier"]
        assert len(storage.read_bytes(f"{disk}/earlier")) == 1_000_000
    finally:
        subprocess.run(["umount", disk], check=True)


def test_errors_of_the_block_are_not_translated(location):
    with pytest.raises(FileNotFoundError, match="mine"), storage.atomic_writer(storage.join(location, "file")):
        raise FileNotFoundError("mine")
    with pytest.raises(OSError, match="No space") as caught, storage.atomic_writer(storage.join(location, "file")):
        raise OSError(errno.ENOSPC, "No space on a different disk")
    assert not isinstance(caught.value, StorageError)
    assert names(location) == []


def test_checksummed_folder(location, folder):
    storage.write_checksummed_folder(folder, location)
    with storage.open_checksummed_folder(location) as fetched:
        files = {str(file.relative_to(fetched)): file for file in fetched.rglob("*") if file.is_file()}
        assert {"weights.bin", "deep/name ä.json"} <= files.keys()
        assert files["weights.bin"].read_bytes() == (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(b"new")
    storage.write_checksummed_folder(folder, location)
    with storage.open_checksummed_folder(location) as fetched:
        assert (fetched / "weights.bin").read_bytes() == b"new"


def test_folder_with_several_writers(location, folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rank1.bin").write_bytes(b"1")
    parts = [storage.upload_folder(folder, location), storage.upload_folder(tmp_path / "other", location)]
    with pytest.raises(StorageError, match="never finished"), storage.open_checksummed_folder(location):
        pass
    storage.write_checksums(location, parts)
    with storage.open_checksummed_folder(location) as fetched:
        assert (fetched / "rank1.bin").read_bytes() == b"1"
        assert (fetched / "weights.bin").is_file()
    storage.remove_checksums(location)
    with pytest.raises(StorageError, match=r"SEAL\.json is missing"), storage.open_checksummed_folder(location):
        pass


@pytest.mark.parametrize("damage", ["shorter", "changed", "missing"])
def test_damaged_folder(location, folder, damage):
    storage.write_checksummed_folder(folder, location)
    weights = storage.join(location, "weights.bin")
    content = storage.read_bytes(weights)
    if damage == "missing":
        storage.delete(weights)
    else:
        storage.write_bytes(weights, content[:-1] if damage == "shorter" else b"x" + content[1:])
    words = r"weights\.bin.*(missing|does not exist)" if damage == "missing" else r"weights\.bin is damaged"
    with pytest.raises(StorageError, match=words), storage.open_checksummed_folder(location):
        pass


def test_unknown_scheme():
    with pytest.raises(StorageError, match=r"gs://bucket/x.*expected a path or s3://"):
        storage.read_bytes("gs://bucket/x")


def test_refused_folder(tmp_path):
    (tmp_path / "file").write_text("")
    below = str(tmp_path / "file" / "below")
    with pytest.raises(StorageError, match=r"cannot write .*file/below.*check the path"):
        storage.write_bytes(below, b"")


def test_no_bucket(s3):
    absent = "s3://no-such-bucket/a"
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/a"):
        storage.write_bytes(absent, b"content")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/a"):
        storage.read_bytes(absent)
    with pytest.raises(StorageError, match=r"the bucket no-such-bucket does not exist"):
        names("s3://no-such-bucket/a")


@pytest.mark.parametrize("key", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_key(s3, key, monkeypatch):
    storage.write_bytes(f"{s3}/stored", b"content")
    with monkeypatch.context() as patch:
        patch.setenv(key, "wrong")
        for call in (storage.read_bytes, storage.exists, names, storage.delete):
            with pytest.raises(StorageError, match=f"{s3}/stored.*AWS_") as caught:
                call(f"{s3}/stored")
            assert "wrong" not in str(caught.value)
        with pytest.raises(StorageError, match=f"cannot write {s3}/new"):
            storage.write_bytes(f"{s3}/new", b"content")
    assert storage.read_bytes(f"{s3}/stored") == b"content"
    assert not storage.exists(f"{s3}/new")
