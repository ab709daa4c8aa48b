"""A full or read-only disk is explained in one way, whatever library notices it first."""

import errno
import os
import pickle
import sqlite3
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakd_ray import storage
from lakd_ray.cli import main
from lakd_ray.errors import DiskFullError, StorageError
from lakd_ray.launch import driver
from lakd_ray.storage.disk_space import find_full_disk


@contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a real disk with these options of tmpfs; skip the test if that is not permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def save_with_torch(folder: Path) -> None:
    import torch

    torch.save(torch.zeros(3_000_000), folder / "state.pt")


def save_safetensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3_000_000)}, folder / "model.safetensors")


def write_parquet(folder: Path) -> None:
    pq.write_table(pa.table({"a": np.random.default_rng(0).random(1_000_000)}), folder / "table.parquet")


def write_sqlite(folder: Path) -> None:
    database = sqlite3.connect(folder / "study.db")
    try:
        database.execute("create table t(a)")
        database.executemany("insert into t values(?)", [(bytes(100_000),)] * 100)
        database.commit()
    finally:
        database.close()


def write_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("a", os.urandom(3_000_000))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("size=1m",), r"No space left on device: .* are free in "),
        (
            ("size=64m", "nr_inodes=1"),
            "no inodes are left: the disk of .* has 6.* free, but it cannot hold one more file",
        ),
        (("size=64m", "ro"), "Read-only file system"),
    ],
    ids=["space", "inodes", "read-only"],
)
@pytest.mark.filterwarnings("ignore")
def test_every_library(tmp_path, options, words):
    with small_disk(tmp_path / "disk", *options) as disk:
        for write in (save_with_torch, save_safetensors, write_parquet, write_sqlite, write_zip):
            with pytest.raises(DiskFullError, match=words), storage.explain_full_disk("write", disk):
                write(disk)
            for file in disk.iterdir():
                file.unlink()
        with pytest.raises(DiskFullError, match=f"cannot write {disk}/file: {words}"):
            storage.write_bytes(f"{disk}/file", bytes(2_000_000))
        if "ro" not in options:
            assert list(disk.iterdir()) == []


def test_other_errors_pass_unchanged(tmp_path):
    for error in (
        OSError(errno.EACCES, "Permission denied"),
        ValueError("x"),
        sqlite3.OperationalError("disk I/O error"),
    ):
        with pytest.raises(type(error)) as caught, storage.explain_full_disk("write", tmp_path):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_message_of_each_cause(tmp_path, code):
    full = find_full_disk(OSError(code, os.strerror(code)), "write", tmp_path / "model", needed_bytes=1_500_000)
    assert isinstance(full, StorageError)
    assert str(full).startswith(
        f"cannot write {tmp_path}/model: {os.strerror(code)}: the file needs at least 1.5 MB, and "
    )
    assert f" are free in {tmp_path}; " in str(full)


def test_causes_inside_of_other_errors(tmp_path):
    """Libraries and Ray wrap the cause, in an attribute or in a text."""
    cause = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "state.pt"))
    wrapped: list[BaseException] = [RuntimeError("in a worker") for _ in range(4)]
    wrapped[0].__cause__ = cause
    wrapped[1].__context__ = cause
    wrapped[2].cause = cause  # type: ignore[attr-defined]  # as RayTaskError
    wrapped[3].worker_failures = {1: RuntimeError("other"), 2: cause}  # type: ignore[attr-defined]  # as Ray Train
    for error in wrapped:
        assert f"cannot write {tmp_path}/state.pt: " in str(find_full_disk(error))
    text = RuntimeError("Traceback (most recent call last): ...\nOSError: [Errno 28] No space left on device")
    assert isinstance(find_full_disk(text), DiskFullError)
    explained = DiskFullError("cannot write x: no inodes are left")
    wrapped[0].__cause__ = pickle.loads(pickle.dumps(explained))
    assert str(find_full_disk(wrapped[0])) == str(explained)
    circle = RuntimeError("its own cause")
    circle.__context__ = circle
    assert find_full_disk(circle) is None


def test_the_command_line_prints_a_message(monkeypatch, capsys):
    def run(*_: object, **__: object) -> None:
        raise RuntimeError("wrapped") from OSError(errno.ENOSPC, "No space left on device", "/x/y")

    monkeypatch.setattr("typer.core.TyperGroup.main", run)
    assert main.main(["doctor"]) == 2
    assert "cannot write /x/y: No space left on device: " in capsys.readouterr().err


def test_training_is_not_retried_on_a_full_disk():
    assert driver._is_user_error(DiskFullError("full"))
    assert not driver._is_user_error(StorageError("S3 is down"))


def test_a_search_ends_at_a_full_disk():
    from lakd_ray.tune.ray_adapter import ProgressCallback

    callback = ProgressCallback(SimpleNamespace(), 1)  # type: ignore[arg-type]  # the searcher is not used
    trial = SimpleNamespace(get_pickled_error=lambda: RuntimeError("DiskFullError: No space left on device"))
    for hook in (callback.on_trial_recover, callback.on_trial_error):
        with pytest.raises(DiskFullError):
            hook(1, [], trial)


def test_a_checkpoint_in_a_bucket_and_a_full_temporary_folder(s3, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(bytes(3_000_000))
    storage.write_checksummed_folder(source, f"{s3}/large-model")
    with small_disk(tmp_path / "disk", "size=2m") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        words = r"its files need 3\.0 MB, and 2\.1 MB are free"
        with pytest.raises(DiskFullError, match=words), storage.open_checksummed_folder(f"{s3}/large-model"):
            pass
        assert list(disk.iterdir()) == []
