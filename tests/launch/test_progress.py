"""What people see: every event once, in order, while training lasts and at its end."""

import threading
import time
from typing import Any

import pytest

from lakd_ray.launch.progress import format_duration, format_epoch, poll_events, print_event
from lakd_ray.launch.run_queue import TrainingEvent


def line(epoch: int, run: str = "mtkd-multilingual-f0-s42") -> dict[str, Any]:
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
    assert format_epoch(line(3)) == (
        "mtkd-multilingual-f0-s42   epoch  3/20  loss 1.235  dev UR 0.634 (en 0.70 fi 0.57)  82 audio-s/s  2:05 left"
    )


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (7325, "2:02:05")])
def test_clock(seconds, text):
    assert format_duration(seconds) == text


def test_what_is_printed(capsys):
    print_event({"event": "started", "run": "a"})
    print_event({"event": "finished", "run": "a"})
    assert capsys.readouterr().out == ""
    print_event({"event": "epoch", "run": "a", "line": line(3)})
    print_event({"event": "lost", "run": "a", "reason": "the node went"})
    print_event({"event": "failed", "run": "a", "reason": "the loss is nan"})
    said = capsys.readouterr().out.splitlines()
    assert "3/20" in said[0]
    assert said[1:] == [
        "a: a worker was lost, going on from the last saved state (the node went)",
        "a: FAILED, the loss is nan",
    ]


class News:
    """Numbered events, some of which come late."""

    def __init__(self) -> None:
        self.waiting: list[TrainingEvent] = []

    def add(self, *numbers: int) -> None:
        self.waiting += [{"event": "x", "run": str(number)} for number in numbers]

    def __call__(self) -> list[TrainingEvent]:
        news, self.waiting = self.waiting, []
        return news


def test_news_are_told_while_it_lasts_and_the_last_ones_at_the_end():
    news, told, other, heard = News(), [], [], threading.Event()

    def tell(event: TrainingEvent) -> None:
        told.append(event["run"])
        heard.set()

    with poll_events(news, tell, other.append):
        news.add(1, 2)
        assert heard.wait(20)
        deadline = time.monotonic() + 20
        while len(told) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        news.add(3)
    assert told == ["1", "2", "3"] == [event["run"] for event in other]


def test_it_ends_when_the_training_fails():
    news, told = News(), []
    with pytest.raises(RuntimeError, match="diverged"), poll_events(news, lambda event: told.append(event["run"])):
        news.add(1)
        raise RuntimeError("diverged")
    assert told == ["1"]
    assert "watch" not in {thread.name for thread in threading.enumerate()}
