"""Signals that end a command: exit status, message, handlers of libraries, and child processes. No Ray here."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lakd_ray import signals

COMMAND = """
import asyncio, os, signal, subprocess, sys, time
from lakd_ray import signals
from lakd_ray.cli import configuration
from lakd_ray.__main__ import run

def work(*arguments):
    {setup}
    try:
        print("ready", flush=True)
        while True:
            time.sleep(0.05)
    finally:
        {cleanup}

configuration.load_config = work
run(["config", "demo"])
"""
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 138}


def set_default_signals() -> None:
    """Restore the handling of signals that a shell or nohup ignores for its children, such as these tests."""
    for signum in STATUS:
        signal.signal(signum, signal.SIG_DFL)


@contextmanager
def command(
    setup: str = "pass", cleanup: str = "print('saved')", **options: object
) -> Iterator["subprocess.Popen[str]"]:
    """Start a command that runs until a signal, and wait until it is ready."""
    code = COMMAND.format(setup=setup, cleanup=cleanup)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes |= {"preexec_fn": set_default_signals} | options
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **pipes)
    try:
        if process.stdout is not None:
            assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", STATUS)
def test_a_signal_ends_a_command_with_its_status_after_the_state_is_saved(signum):
    # an asynchronous event loop, Ray and Ray Train replace handlers
    setup = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(15)); signal.signal(signal.SIGINT, signal.SIG_IGN)"
    with command(setup) as process:
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (STATUS[signum], "saved\n")
    assert err == f"interrupted ({signum.name}); run the same command again to resume\n"


def test_a_second_signal_ends_all_at_once_but_a_repetition_within_a_second_does_not():
    with command(cleanup="print('saving', flush=True); time.sleep(0.5); print('saved', flush=True)") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (143, "saved\n")
    child = "subprocess.Popen(['sh', '-c', 'sleep 600 & wait'], start_new_session=True)"  # holds the pipe of the output
    with command(child, cleanup="print('saving', flush=True); time.sleep(60)") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "saving\n"
        time.sleep(signals._REPEAT_S + 0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)  # returns after the child and its child have ended
    assert (process.returncode, out, err) == (130, "", "ended at once by a second signal\n")


def test_a_second_signal_ends_a_command_that_waits_in_a_library():
    stuck = (
        "import ctypes, threading; lock = ctypes.create_string_buffer(64); library = ctypes.CDLL(None)\n"
        "    library.pthread_mutex_lock(lock)\n"
        "    threading.Timer(1, print, ['ready'], {'flush': True}).start()\n"
        "    library.pthread_mutex_lock(lock)"
    )
    with command(stuck) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(signals._REPEAT_S + 0.1)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (143, "ended at once by a second signal\n")


def test_an_error_that_a_signal_caused_is_not_reported_as_one():
    with command(cleanup="raise RuntimeError('the cluster is gone')") as process:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (143, 1)


def test_an_ignored_sigint_of_a_background_job_is_handled_and_nohup_is_respected():
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with command(preexec_fn=ignore) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_closed_terminal_is_no_error(tmp_path: Path):
    primary, secondary = pty.openpty()
    cleanup = "print('to nowhere', flush=True); open(os.environ['SAVED'], 'w').close()"
    saved = tmp_path / "saved"
    with command(
        cleanup=cleanup, stdout=secondary, stderr=secondary, env={**os.environ, "SAVED": str(saved)}
    ) as process:
        os.close(secondary)
        assert os.read(primary, 100).startswith(b"ready")
        os.close(primary)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 129
    assert saved.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_process_1_of_a_container_ends_on_sigterm():
    code = COMMAND.format(setup="assert os.getpid() == 1", cleanup="print('saved')")
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout), signal.SIGTERM)
    assert (process.communicate(timeout=60)[0], process.returncode) == ("saved\n", 143)


def test_processes_of_a_cluster_outlive_a_signal_to_the_group():
    setup = (
        "global child\n    with signals.shielded_children(): "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], preexec_fn=int)"
    )
    cleanup = "time.sleep(0.2); print(child.poll()); child.kill()"
    with command(setup, cleanup) as process:
        os.killpg(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == "None\n"


RESTORED = """
import signal
from lakd_ray import signals

before = [signal.getsignal(signum) for signum in signals.SIGNALS]
set_handler = signal.signal
with signals.interruptible():
    assert signal.getsignal(signal.SIGTERM) is signals._interrupt
    try:
        signal.raise_signal(signal.SIGTERM)
    except signals.Interrupted as interruption:
        assert str(interruption) == "SIGTERM" and signals.received() == signal.SIGTERM
    else:
        raise AssertionError("not interrupted")
assert [signal.getsignal(signum) for signum in signals.SIGNALS] == before
assert signal.signal is set_handler and signals.received() is None
"""


def test_handlers_are_restored():
    subprocess.run([sys.executable, "-c", RESTORED], check=True, timeout=60)
