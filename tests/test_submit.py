"""`jobs/submit.py`: each part of a job's log is printed once, and the exit status is that of the job."""

import asyncio
import importlib.util
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from lakd_ray.errors import ResourceError

LOG = "one\ntwo\nthree\n"
_spec = importlib.util.spec_from_file_location("submit", Path(__file__).parents[1] / "jobs" / "submit.py")
submit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(submit)


class Client:
    """A cluster whose log connection shows a little more each time, and breaks in between."""

    def __init__(self, end: JobStatus, exit_code: int | None = None, breaks: Exception | None = None) -> None:
        self.end, self.exit_code, self.breaks, self.queries = end, exit_code, breaks, 0

    def get_job_info(self, job: str) -> SimpleNamespace:
        self.queries += 1
        status = self.end if self.queries > 3 else JobStatus.RUNNING
        return SimpleNamespace(
            status=status, message="why, last available logs (truncated):\n" + LOG, driver_exit_code=self.exit_code
        )

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        shown = LOG[: 4 * self.queries]
        yield shown[:2]
        yield shown[2:]
        if self.breaks:
            raise self.breaks

    def get_job_logs(self, job: str) -> str:
        return LOG


@pytest.fixture(autouse=True)
def poll_without_pause(monkeypatch):
    monkeypatch.setattr(submit, "POLL_INTERVAL_S", 0.0)


@pytest.mark.parametrize(
    ("end", "exit_code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.STOPPED, None, 130),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, None, 1),
    ],
)
@pytest.mark.parametrize("breaks", [None, RuntimeError("closed"), ConnectionResetError("gone")])
def test_exit_status_and_log(end, exit_code, expected, breaks, capsys):
    assert submit.tail_until_done(Client(end, exit_code, breaks), "job", timeout_s=60) == expected
    log, _, last = capsys.readouterr().out.rpartition("job: ")
    assert log == LOG
    assert last == f"{end.value.lower()} - why\n"


def test_a_lost_cluster_is_an_error_after_the_timeout():
    class Gone(Client):
        def get_job_info(self, job: str) -> SimpleNamespace:
            raise ConnectionError("refused")

    with pytest.raises(ResourceError, match="may still run"):
        submit.tail_until_done(Gone(JobStatus.RUNNING), "job", timeout_s=0)


def test_a_missing_cluster_is_an_error_after_the_timeout():
    with pytest.raises(ResourceError, match="no Ray cluster"):
        submit.connect("http://127.0.0.1:9", timeout_s=0)


@pytest.mark.parametrize("drips", [False, True], ids=["silent", "a byte now and then"])
def test_a_server_that_never_answers(drips):
    """Requests of Ray's client have no deadline of their own."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                while True:
                    time.sleep(0.1)
                    if drips:
                        connection.sendall(b"H")

        threading.Thread(target=accept, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(ResourceError, match="no Ray cluster"):
            submit.connect(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.5)
        assert time.monotonic() - started < 20


def test_a_cluster_that_freezes_is_an_error_after_the_timeout():
    class Frozen(Client):
        def get_job_info(self, job: str) -> SimpleNamespace:
            time.sleep(60)
            raise AssertionError

    with pytest.raises(ResourceError, match="may still run"):
        submit.tail_until_done(Frozen(JobStatus.RUNNING), "job", timeout_s=0.2)


def test_a_log_that_is_silent_is_read_again(monkeypatch, capsys):
    class Silent(Client):
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield LOG
            await asyncio.sleep(60)

    monkeypatch.setattr(submit, "MIN_SILENCE_S", 0.05)
    assert submit.tail_until_done(Silent(JobStatus.SUCCEEDED), "job", timeout_s=0.05) == 0
    assert capsys.readouterr().out.startswith(LOG + "job: succeeded")
