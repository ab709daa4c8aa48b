"""One process at a time works on a folder, and a process that has lost its lease writes nothing more."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from lakd_ray import storage
from lakd_ray.errors import LeaseError, StorageError
from lakd_ray.processes import ProcessId
from lakd_ray.storage import conditional, fences, lease
from lakd_ray.storage.fences import Fence
from lakd_ray.storage.lease import Holder, Lease, last_holder

HOLD = """
import sys
from lakd_ray import storage
from lakd_ray.errors import LakdError
folder = sys.argv[1]
try:
    with storage.hold(folder):
        storage.write_json(folder + "/run/state.json", {"by": "first"})
        print("holds", flush=True)
        for line in sys.stdin:
            storage.write_json(folder + "/run/state.json", {"by": line.strip()})
            print("wrote", flush=True)
except LakdError as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a folder, which does not exist yet."""
    return str(tmp_path / "e") if request.param == "disk" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


class OtherProcess:
    """A process that holds the lease of a folder and writes a state for each line that it gets."""

    def __init__(self, folder: str, source: str = HOLD) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", source, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first_line = self.read()

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def write(self, text: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.read()

    def __enter__(self) -> "OtherProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def files(folder: str) -> list[str]:
    return [info.location.removeprefix(folder + "/") for info in storage.list_files(folder)]


def test_a_second_process_is_refused_at_once_with_the_holder(folder):
    with OtherProcess(folder) as first:
        assert first.first_line == "holds"
        with pytest.raises(LeaseError, match=rf"in use by .*process {first.process.pid} on .*lakd unlock") as refusal:
            Lease.acquire(folder)
        assert "last heartbeat" in str(refusal.value)
        assert first.write("second") == "wrote"


def test_a_killed_holder_does_not_make_the_next_one_wait(folder):
    with OtherProcess(folder) as first:
        first.process.kill()  # not waited for: a zombie does not count as alive
        while not (holder := last_holder(folder)) or holder.status != "free":
            time.sleep(0.01)
        started = time.monotonic()
        with storage.hold(folder):
            assert time.monotonic() - started < 5
            assert last_holder(folder).token == 2


def test_a_suspended_holder_writes_nothing_after_the_take_over(folder):
    with OtherProcess(folder) as first:
        first.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, first.process.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(LeaseError, match=r"suspended.*kill -9"):
            Lease.acquire(folder)
        assert storage.end_lease(folder).process.pid == first.process.pid
        with storage.hold(folder):
            storage.write_json(f"{folder}/run/state.json", {"by": "new holder"})
            first.process.send_signal(signal.SIGCONT)
            assert "LeaseError" in first.write("old holder")
            assert storage.read_json(f"{folder}/run/state.json") == {"by": "new holder"}
        assert files(folder) == ["lease/000003.json", "run/state.json"]


@pytest.mark.parametrize(("code", "attempts"), [(errno.EACCES, 1), (errno.ENOTEMPTY, 2)])
def test_a_token_folder_that_cannot_be_deleted_ends_the_take_over(tmp_path, monkeypatch, code, attempts):
    """The folder may belong to a different user, or an open file on NFS may keep it."""
    folder = str(tmp_path)
    lease_of_dead_process = Lease.acquire(folder)
    now = itertools.count(0, 40)
    calls = []

    def fail(path: Path) -> None:
        calls.append(path)
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(lease.shutil, "rmtree", fail)
    monkeypatch.setattr(lease.time, "monotonic", lambda: next(now))
    with pytest.raises(StorageError, match=r"cannot delete .*lease/000001"):
        storage.end_lease(folder)
    assert len(calls) == attempts
    monkeypatch.undo()
    lease_of_dead_process.release()


def test_a_lease_that_could_not_be_released_does_not_refuse_its_own_process(folder, monkeypatch):
    def fail(*_: object) -> None:
        raise StorageError("the disk is full")

    with pytest.raises(ValueError, match="a stage failed"), storage.hold(folder):
        monkeypatch.setattr(lease, "write_bytes", fail)
        raise ValueError("a stage failed")
    monkeypatch.undo()
    with storage.hold(folder):
        assert last_holder(folder).token == 2


def test_a_holder_notices_at_its_next_heartbeat(folder):
    source = HOLD.replace("import sys", "import sys, time\nfrom lakd_ray.storage import lease\nlease.HEARTBEAT_S = 0.1")
    source = source.replace("for line in sys.stdin:", "while True:\n            time.sleep(60)\n        if True:")
    with OtherProcess(folder, source) as first:
        storage.end_lease(folder)
        assert "LeaseError this process may no longer write" in first.read()


def test_a_write_that_began_before_the_take_over_is_not_published(folder):
    held = Lease.acquire(folder)
    try:
        with pytest.raises(LeaseError), storage.atomic_writer(f"{folder}/run/state.json") as stream:
            stream.write(b"old")
            storage.end_lease(folder)
        for write in (
            lambda: storage.write_bytes(f"{folder}/run/state.json", b"old"),
            lambda: storage.create_json(f"{folder}/run/record.json", {}),
            lambda: storage.add_line(f"{folder}/events.jsonl", {}),
            lambda: storage.delete(f"{folder}/lease"),
        ):
            with pytest.raises(LeaseError, match="a different process has taken it over"):
                write()
    finally:
        held.release()
    assert {name.partition("/")[0] for name in files(folder)} == {"lease"}


def test_a_check_that_passed_before_the_take_over_protects_nothing_but_the_write_fails(folder, monkeypatch):
    """A process may be suspended after its check and before its write: the storage itself refuses the write."""
    held = Lease.acquire(folder)
    location = f"{folder}/run/state.json"
    storage.write_json(location, {"by": "first"})

    def check_then_be_suspended(fence: Fence) -> None:
        monkeypatch.undo()
        storage.end_lease(folder)
        fences.lift(fence)  # the new holder writes in this process
        storage.write_json(location, {"by": "new holder"})
        fences.enforce(fence)

    monkeypatch.setattr(Fence, "check", check_then_be_suspended)
    try:
        with pytest.raises(LeaseError):
            storage.write_json(location, {"by": "old holder"})
    finally:
        held.release()
    assert storage.read_json(location) == {"by": "new holder"}


def on_another_machine(folder: str, **changes: object) -> Holder:
    """Write the lease of a holder on a machine that is not this one."""
    process = ProcessId("node-7", "other", 1, "1")
    token = fences.list_tokens(folder)[-1] + 1 if fences.list_tokens(folder) else 1
    holder = replace(Holder.current(token), process=process, **changes)
    assert conditional.create_file(Fence(folder, token).record, holder.to_bytes())
    return holder


def test_a_holder_on_a_different_machine_is_dead_without_a_heartbeat_whatever_its_clock(folder, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY_S", 0.5)
    monkeypatch.setattr(lease, "_POLL_S", 0.05)
    holder = on_another_machine(folder, since="2999-01-01 00:00:00 UTC", last_heartbeat="2999-01-01 00:00:00 UTC")
    reads = []

    def read_and_beat(read_folder: str) -> Holder | None:
        reads.append(read_folder)
        if len(reads) == 3:
            storage.write_bytes(Fence(folder, 1).record, replace(holder, heartbeat=7).to_bytes())
        return last_holder(read_folder)

    with monkeypatch.context() as patch:
        patch.setattr(lease, "last_holder", read_and_beat)
        with pytest.raises(LeaseError, match="on node-7"):
            Lease.acquire(folder)
    with storage.hold(folder):  # no further heartbeat: it is dead
        assert last_holder(folder).token == 2


def test_a_damaged_token_is_watched_and_then_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY_S", 0.1)
    monkeypatch.setattr(lease, "_POLL_S", 0.02)
    storage.write_bytes(f"{tmp_path}/lease/000004.json", b"\0" * 100)
    with storage.hold(str(tmp_path)):
        assert fences.list_tokens(str(tmp_path)) == [5]


slow_in_bucket = pytest.mark.parametrize(
    "folder", ["disk", pytest.param("bucket", marks=pytest.mark.slow)], indirect=True
)
RACE = """
import sys
from lakd_ray import storage
from lakd_ray.errors import LeaseError
folder, left = sys.argv[1], 3
sys.stdin.readline()
while left:
    try:
        with storage.hold(folder):
            if not storage.create_json(folder + "/inside.json", {"by": sys.argv[2]}):
                print("two at once", storage.read_json(folder + "/inside.json"))
            storage.add_line(folder + "/events.jsonl", sys.argv[2])
            storage.delete(folder + "/inside.json")
            left -= 1
    except LeaseError:
        pass
"""


@slow_in_bucket
def test_of_many_processes_one_at_a_time_holds_the_folder(folder):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, folder, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    output = [racer.communicate() for racer in racers]
    assert output == [("", "")] * 4
    assert sorted(storage.read_lines(f"{folder}/events.jsonl")) == sorted(["0", "1", "2", "3"] * 3)
    assert fences.list_tokens(folder)[-1] == 12


@slow_in_bucket
def test_lines_of_several_writers_are_not_lost_and_torn_ones_are_skipped(folder):
    location = f"{folder}/events.jsonl"
    source = "import sys; from lakd_ray import storage; [storage.add_line(sys.argv[1], n) for n in range(10)]"
    writers = [subprocess.Popen([sys.executable, "-c", source, location]) for _ in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    storage.write_bytes(location, storage.read_bytes(location) + b'{"torn')
    storage.add_line(location, "after a power failure")
    lines = storage.read_lines(location)
    assert sorted(lines[:-1]) == sorted([*range(10)] * 3)
    assert lines[-1] == "after a power failure"


def test_a_server_without_conditional_writes_is_recognized(s3, monkeypatch, caplog):
    """The request is sent without its condition, as if the server did not know it."""
    folder = f"{s3}/{uuid.uuid4().hex}"
    put = conditional._put
    monkeypatch.setattr(conditional, "_put", lambda location, content, **_: put(location, content))
    monkeypatch.setattr(lease, "_SETTLE_S", 0.1)
    with storage.hold(folder):
        assert "no conditional writes" in caplog.text
        storage.write_json(f"{folder}/state.json", {})
        with pytest.raises(LeaseError):
            Lease.acquire(folder)
        storage.end_lease(folder)
        with pytest.raises(LeaseError):
            storage.write_json(f"{folder}/state.json", {"by": "old"})
    assert storage.read_json(f"{folder}/state.json") == {}


def test_workers_enforce_exactly_the_fences_of_their_driver(tmp_path):
    folder, other = str(tmp_path / "e"), str(tmp_path / "base")
    with OtherProcess(folder), OtherProcess(other):
        content = [Fence(folder, 1).to_dict(), Fence(other, 1).to_dict()]
        storage.join_fences(content)
        try:
            storage.write_json(f"{folder}/state.json", {})
            with storage.hold(folder):  # a stage inside a worker, as in a trial of the search
                assert fences.list_tokens(folder) == [1]
            storage.end_lease(folder)
            storage.end_lease(other)
            with pytest.raises(LeaseError):
                storage.write_json(f"{folder}/state.json", {})
            storage.join_fences(content[:1])
            storage.write_json(f"{other}/state.json", {})  # the next task has no fence there
        finally:
            storage.join_fences([])
