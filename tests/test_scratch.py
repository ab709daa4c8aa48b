"""Temporary folders are removed when their process ends; those of killed processes when the next one starts."""

import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lakd_ray import scratch

KILLED = """
import os, signal
from lakd_ray.scratch import make_scratch_folder
folder = make_scratch_folder()
(folder / "state").write_bytes(b"x" * 1000)
print(folder, flush=True)
"""


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a new folder as TMPDIR; a short one, because names of sockets may have 107 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        scratch._remove_leftovers_once.cache_clear()
        yield Path(folder)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def start(source: str) -> tuple["subprocess.Popen[str]", Path]:
    """Start a process that makes a scratch folder; return both."""
    process = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def leave_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def test_a_folder_is_private_and_removed_at_the_end(temporary):
    with scratch.scratch_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()
    assert names(temporary) == set()


def test_the_next_process_removes_what_killed_ones_have_left_and_nothing_else(temporary):
    (temporary / "lakd-of-a-user").mkdir()
    (temporary / f"{scratch.PREFIX}link").symlink_to(temporary / "lakd-of-a-user")
    running, in_use = start(KILLED + "input()")
    for _ in range(3):
        killed, folder = start(KILLED + "os.kill(os.getpid(), signal.SIGKILL)")
        assert killed.wait() == -signal.SIGKILL
        killed.communicate()
    assert folder.exists()
    assert [(item.path, item.size) for item in scratch.find_leftovers()] == [(folder, 1000)], "each removes the last"
    with scratch.scratch_folder() as mine:
        assert names(temporary) == {mine.name, in_use.name, "lakd-of-a-user", f"{scratch.PREFIX}link"}
    running.kill()
    running.communicate()
    assert scratch.remove_leftovers() == 1000
    assert names(temporary) == {"lakd-of-a-user", f"{scratch.PREFIX}link"}


def test_a_folder_that_is_taken_for_a_leftover_before_it_is_locked_is_not_used(temporary, monkeypatch):
    lock = scratch._try_lock

    def remove_first(folder: Path) -> int | None:
        monkeypatch.undo()
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        scratch._remove_if_unlocked(folder)
        return lock(folder)

    monkeypatch.setattr(scratch, "_try_lock", remove_first)
    with scratch.scratch_folder() as folder:
        assert folder.is_dir()


def test_sockets_without_a_process_are_left_over(temporary):
    for name in ("pymp-dead", "pymp-live"):
        (temporary / name).mkdir()
    leave_socket(temporary / "pymp-dead" / "listener")
    with multiprocessing.connection.Listener(str(temporary / "pymp-live" / "listener")):
        scratch.remove_leftovers()
        assert names(temporary) == {"pymp-live"}


FORK_SERVER = """
import multiprocessing, tempfile
from multiprocessing import forkserver
forkserver.ensure_running()
print(tempfile.gettempdir(), flush=True)
input()
process = multiprocessing.get_context("forkserver").Process(target=int)
process.start()
process.join()
print(process.exitcode)
"""


def test_a_process_that_starts_others_is_not_disturbed(temporary):
    process, folder = start(FORK_SERVER)
    assert folder == temporary and len(names(temporary)) == 1
    assert scratch.find_leftovers() == []
    assert process.communicate("\n", timeout=60)[0] == "0\n"


def test_ended_ray_sessions_of_this_project_are_left_over_except_the_newest(temporary):
    def make_session(number: int, pid: int, *, ours: bool = True) -> str:
        folder = temporary / "ray" / f"session_2026-01-0{number}_00-00-00_000000_{pid}"
        (folder / "sockets").mkdir(parents=True)
        leave_socket(folder / "sockets" / "raylet")
        if ours:
            (folder / scratch.RAY_SESSION_MARK).touch()
        return folder.name

    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    ended = [make_session(number, process.pid) for number in range(1, 6)]
    retained = {*ended[2:], make_session(6, os.getpid()), make_session(7, process.pid, ours=False)}
    assert [item.path.name for item in scratch.find_leftovers()] == ended[:2]
    scratch.remove_leftovers()
    assert names(temporary / "ray") == retained
