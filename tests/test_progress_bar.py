"""Progress on a terminal and in a log."""

import logging
import os
import pty
import subprocess
import sys

import pytest

from lakd_ray import progress
from lakd_ray.progress import format_clock, format_rate, progress_bar


def test_a_log_receives_the_first_and_the_last_state(capsys):
    with progress_bar(4, "scan", "clip") as bar:
        for _ in range(4):
            bar.update()
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    assert out == ""
    assert first == "scan: 0/4 (0%)"
    assert last.startswith("scan: 4/4 (100%), ") and last.endswith(" clip/s, 0:00 elapsed")


def test_a_log_receives_the_remaining_time(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    with progress_bar(30, "features", "shard", initial=10) as bar:
        bar.update(10)
    assert capsys.readouterr().err.splitlines()[1].startswith("features: 20/30 (66%), ")


def test_lines_are_rare_and_without_control_characters(capsys):
    for description in ("first", "second"):
        with progress_bar(None, description) as bar:
            for _ in range(1000):
                bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    assert lines[0] == "first: 0" and lines[3].startswith("second: 1000, ")


def test_the_last_state_is_written_after_an_error(capsys):
    with pytest.raises(ValueError, match="broken"), progress_bar(4, "scan") as bar:
        bar.update(3)
        raise ValueError("broken")
    assert "scan: 3/4 (75%)" in capsys.readouterr().err


def test_a_quiet_logger_hides_progress(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lakd_ray"), "level", logging.WARNING)
    with progress_bar(2, "scan") as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def read_to_end(terminal: int) -> str:
    """Everything written to a terminal whose other side is closed: one read may return a part."""
    parts = []
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux reports the end of a terminal as an input/output error
            part = b""
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


def test_a_terminal_shows_a_bar_and_standard_output_stays_clean(tmp_path):
    code = (
        "from lakd_ray.progress import progress_bar\n"
        "for name in ('first', 'second'):\n"
        "    with progress_bar(3, name, 'clip') as bar:\n"
        "        for i in range(3):\n"
        "            print('line', i)\n"
        "            bar.update()\n"
    )
    primary, secondary = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=secondary, env=env, check=True
    )
    os.close(secondary)
    screen = read_to_end(primary)
    os.close(primary)
    assert process.stdout.decode().split() == ["line", "0", "line", "1", "line", "2"] * 2
    assert "100%" in screen and "second" in screen and "\x1b[" in screen


def test_rates_and_times():
    assert format_rate(100, 2.0, "clip") == "50.0 clip/s"
    assert format_rate(1, 4.0, "clip") == "4.0 s/clip"
    assert format_rate(0, 4.0, "clip") == ""
    assert [format_clock(seconds) for seconds in (0.4, 75, 3671)] == ["0:00", "1:15", "1:01:11"]
