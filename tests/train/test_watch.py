"""Progress lines: every epoch once, nothing that was there before."""

import time
from pathlib import Path
from typing import Any

import pytest

from lakd_ray.train.state import METRICS, State
from lakd_ray.train.watch import clock, format_line, show, watching


def line(epoch: int, run: str = "mtkd-multilingual") -> dict[str, Any]:
    return {
        "run": run,
        "epoch": epoch,
        "epochs": 20,
        "loss": 1.23456,
        "dev_UR": 0.634,
        "dev_recall": {"en": 0.7, "fi": 0.568},
        "audio_seconds_per_second": 81.6,
        "seconds_left": 125.4,
    }


def test_one_epoch_for_people():
    assert format_line(line(3)) == (
        "mtkd-multilingual    epoch  3/20  loss 1.235  dev UR 0.634 (en 0.70 fi 0.57)  82 audio-s/s  2:05 left"
    )


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (7325, "122:05")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_each_line_is_shown_once(tmp_path, capsys):
    folder = str(tmp_path)
    shown = {folder: 0, str(tmp_path / "not-started"): 0}
    show(shown)
    State(1, metrics=[line(1)]).write(folder)
    show(shown)
    show(shown)
    State(3, metrics=[line(1), line(2), line(3)]).write(folder)
    show(shown)
    assert [text.split()[2] for text in capsys.readouterr().out.splitlines()] == ["1/20", "2/20", "3/20"]


def test_a_run_that_starts_anew_is_not_shown_twice(tmp_path, capsys):
    State(2, metrics=[line(1), line(2)]).write(str(tmp_path))
    shown = {str(tmp_path): 2}
    (tmp_path / METRICS).unlink()
    show(shown)
    State(2, metrics=[line(1), line(2)]).write(str(tmp_path))
    show(shown)
    assert capsys.readouterr().out == ""
    assert shown == {str(tmp_path): 2}


def wait_for_output(capsys: pytest.CaptureFixture[str], seconds: float = 20) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if text := capsys.readouterr().out:
            return text
        time.sleep(0.05)
    return ""


def test_watching_shows_new_epochs_while_it_lasts_and_the_last_ones_at_the_end(tmp_path: Path, capsys):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    State(1, metrics=[line(1, "a")]).write(folders[0])
    with watching(folders):
        State(1, metrics=[line(1, "b")]).write(folders[1])
        assert "b   " in wait_for_output(capsys)
        State(2, metrics=[line(1, "a"), line(2, "a")]).write(folders[0])
    assert capsys.readouterr().out.count("\n") == 1


def test_watching_ends_when_the_training_fails(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="diverged"), watching([str(tmp_path)]):
        State(1, metrics=[line(1)]).write(str(tmp_path))
        raise RuntimeError("diverged")
    assert "1/20" in capsys.readouterr().out
