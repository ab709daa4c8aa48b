"""A lock that a killed build has left is removed; one of a build in progress is respected until the deadline."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lakd_ray import extension_builds
from lakd_ray.errors import ResourceError
from lakd_ray.extension_builds import find_locks, is_stale, limited_build
from lakd_ray.ops.doctor.host_checks import check_build_locks

HOLD = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(flush=True); time.sleep(60)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(extension_builds, "_LOG_INTERVAL_S", 0.1)
    (tmp_path / "op").mkdir()
    return tmp_path / "op"


@pytest.fixture
def builder(folder: Path):
    """A process that holds the lock as torch's builder does."""
    process = subprocess.Popen([sys.executable, "-S", "-c", HOLD, str(folder / "lock")], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_killed_build(folder, builder):
    lock, lines = folder / "lock", []
    assert not is_stale(lock)
    assert check_build_locks().status == "ok"
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert find_locks(folder.parent) == [lock]
    result = check_build_locks()
    assert (result.status, "of a killed build" in result.found) == ("warn", True)
    with limited_build(folder, lines.append, is_built=True):
        assert not lock.exists()
    assert lines == [f"removing {lock}, which a build that was killed has left"]
    assert check_build_locks().status == "ok"


def test_a_build_in_progress(folder, builder):
    lines = []
    with (
        pytest.raises(ResourceError, match="waited 1 s for the process that holds"),
        limited_build(folder, lines.append, is_built=True, timeout_s=0.5),
    ):
        pytest.fail("it did not wait")
    assert (folder / "lock").exists()
    assert any("waiting for the process that holds" in line for line in lines)


def test_a_shared_file_system(folder, monkeypatch):
    lock = folder / "lock"
    lock.touch()
    monkeypatch.setattr(extension_builds, "_is_local", lambda path: False)
    assert not is_stale(lock)  # a process on a different machine may have it
    old = time.time() - extension_builds.BUILD_TIMEOUT_S - 60
    os.utime(lock, (old, old))
    assert is_stale(lock)


def test_one_build_at_a_time(folder):
    inside, most = [], []

    def build() -> None:
        with limited_build(folder, lambda line: None, is_built=True):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1, 1, 1, 1]


def test_a_compiler_that_does_not_end_is_killed(folder):
    lines = []
    started = time.monotonic()
    with (
        pytest.raises(ResourceError, match=r"cannot build the extension op .* did not end within 0\.5 s"),
        limited_build(folder, lines.append, is_built=False, timeout_s=0.5),
    ):
        if subprocess.run(["sh", "-c", "sleep 60; true"], check=False).returncode:
            raise RuntimeError("Error building extension")
    assert time.monotonic() - started < 30
    assert lines[0].startswith("building op in")
