"""Signals to real commands with real clusters: exit status, last line, remaining processes, and resuming."""

import collections
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import soundfile
from support import tiny_models as tiny
from support.chaos import ROOT, SMALL, marked_environment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]
slow = pytest.mark.slow

SERVE = """
import sys
from lakd_ray.runs import state
state.find_best_student_checkpoint = lambda graph: {checkpoint!r}
from lakd_ray.__main__ import run
run()
"""


class Command:
    """A command in a session of its own, with its output in a file."""

    def __init__(self, folder: Path, arguments: list[str], *, code: str | None = None, **environment: str) -> None:
        self._log = folder / "log"
        program = ["-c", code] if code else ["-m", "lakd_ray"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output or self.process.poll() is not None, 600)
        assert self.process.poll() is None, self.output[-3000:]

    def end(self, signum: int, *, group: bool, timeout_s: float = 240) -> int:
        (os.killpg if group else os.kill)(self.process.pid, signum)
        return self.process.wait(timeout=timeout_s)

    def members(self) -> list[psutil.Process]:
        """Return the running processes of the session."""
        found = []
        for process in psutil.process_iter(["status"]):
            try:
                if os.getsid(process.pid) == self.process.pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except OSError:
                continue
        return found

    def close(self) -> None:
        for process in self.members():
            process.kill()


def wait_until_ended(command: Command, timeout_s: float) -> None:
    """Wait until no process of the command is left."""
    deadline = time.monotonic() + timeout_s
    while members := command.members():
        assert time.monotonic() < deadline, [(process.pid, process.ppid(), process.cmdline()) for process in members]
        time.sleep(0.1)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    environment = marked_environment(tmp_path)
    commands: list[Command] = []

    def start_command(*arguments: str, code: str | None = None) -> Command:
        commands.append(Command(tmp_path, list(arguments), code=code, **environment))
        return commands[-1]

    yield start_command
    for command in commands:
        command.close()


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    file = tmp_path / "interrupted.yaml"
    content = SMALL.format(name="interrupted", storage=tmp_path / "out", network=tiny.NETWORK, epochs=60)
    file.write_text(content.replace("log_to_driver: true", "log_to_driver: false"))
    return str(file)


STOPS = [
    pytest.param(signal.SIGINT, True, 130, id="Ctrl-C"),
    pytest.param(signal.SIGTERM, False, 143, id="kill"),
    pytest.param(signal.SIGTERM, True, 143, id="timeout"),  # to all processes, as `timeout` and systemd do
    pytest.param(signal.SIGHUP, True, 129, id="terminal"),
    pytest.param(signal.SIGUSR1, False, 138, id="slurm"),
]


@slow
@pytest.mark.parametrize(("signum", "group", "status"), STOPS)
def test_training_saves_its_state_and_resumes(start, experiment, signum, group, status):
    command = start("pipeline", experiment)
    command.wait_for("epoch  3/60")
    assert command.end(signum, group=group) == status, command.output[-3000:]
    last = command.output.splitlines()[-1]
    assert last == f"interrupted ({signal.Signals(signum).name}); run the same command again to resume"
    assert "saved at" in command.output and "Traceback" not in command.output and "*** SIG" not in command.output
    wait_until_ended(command, 30)
    again = start("train-teachers", experiment, "--set", "teacher.optim.epochs=60")
    assert again.process.wait(timeout=900) == 0, again.output[-3000:]
    assert "epoch  1/60" not in again.output


SLOW_STARTS = [
    *((stage, seconds) for stage in ("prepare", "pipeline", "run-grid") for seconds in (0.0, 1.0, 5.0, 15.0)),
    *(("train-teachers", seconds) for seconds in (0.0, 1.0, 3.0)),  # without prepared data, it ends on its own
]


@pytest.mark.parametrize(
    ("stage", "seconds"),
    [("prepare", 2.0), *(pytest.param(*start, marks=slow) for start in SLOW_STARTS)],
)
def test_a_start_is_interrupted_at_once(start, experiment, stage, seconds):
    command = start(stage, experiment)
    time.sleep(seconds)
    assert command.end(signal.SIGTERM, group=False) in (143, -signal.SIGTERM)  # before Python has started
    assert "Traceback" not in command.output
    wait_until_ended(command, 30)


@slow
def test_a_killed_driver_leaves_no_processes(start, experiment):
    command = start("pipeline", experiment)
    command.wait_for("epoch  2/60")
    command.end(signal.SIGKILL, group=False)
    wait_until_ended(command, 120)  # agents of Ray report to the cluster, which has ended, for a minute


@slow
def test_a_second_signal_ends_training_at_once(start, experiment):
    command = start("pipeline", experiment, "--set", "cluster.stop_s=300")
    command.wait_for("epoch  2/60")
    command.process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert command.end(signal.SIGINT, group=False, timeout_s=30) == 130
    wait_until_ended(command, 20)


@slow
@pytest.mark.parametrize(("signum", "group", "status"), STOPS[:3])
def test_the_endpoint_loses_no_request(start, experiment, tmp_path, signum, group, status):
    checkpoint = tiny.checkpoint(tmp_path, languages=("en",))
    command = start("serve", experiment, "--set", "serve.port=0", code=SERVE.format(checkpoint=checkpoint))
    command.wait_for("serving ")
    url = next(line for line in command.output.splitlines() if "POST http" in line).split()[1].rstrip(",")
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(np.arange(20 * 16_000) / 20), 16_000, format="WAV")
    outcomes: collections.Counter[str] = collections.Counter()
    ended = threading.Event()

    def send() -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not ended.is_set():
                try:
                    response = client.post(url, content=buffer.getvalue(), headers={"Content-Type": "audio/wav"})
                    assert response.status_code == 200 or response.json()["error"]
                    outcomes[str(response.status_code)] += 1
                    time.sleep(float(response.headers.get("Retry-After", 0)))
                except httpx.ConnectError:
                    outcomes["refused"] += 1
                    time.sleep(0.1)
                except httpx.TransportError as error:
                    outcomes[type(error).__name__] += 1

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: outcomes["200"] > 20 or set(outcomes) - {"200"}, 240)
    assert command.end(signum, group=group) == status, command.output[-3000:]
    ended.set()
    for thread in threads:
        thread.join()
    assert command.output.splitlines()[-1].endswith("the endpoint is stopped; the same command starts it again")
    assert set(outcomes) <= {"200", "503", "refused"}, outcomes
    wait_until_ended(command, 30)
