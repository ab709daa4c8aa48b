"""Progress of training for the user: every event once, in order, while training runs and at its end."""

import logging
import threading
import time
from typing import Any

import pytest

from lakd_ray.launch.event_log import format_duration, format_epoch, log_event, poll_events
from lakd_ray.launch.run_queue import TrainingEvent


def epoch_metrics(epoch: int, run: str = "mtkd-multilingual-f0-s42") -> dict[str, Any]:
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


def test_log_line_of_an_epoch():
    assert format_epoch(epoch_metrics(3)) == (
        "mtkd-multilingual-f0-s42   epoch  3/20  loss 1.235  dev UR 0.634 (en 0.70 fi 0.57)  82 audio-s/s  2:05 left"
    )


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (7325, "2:02:05")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_logged_events(caplog):
    caplog.set_level(logging.INFO, logger="lakd_ray")
    log_event({"event": "started", "run": "a"})
    log_event({"event": "finished", "run": "a"})
    assert caplog.messages == []
    log_event({"event": "epoch", "run": "a", "line": epoch_metrics(3)})
    log_event({"event": "lost", "run": "a", "reason": "the node was shut down"})
    log_event({"event": "failed", "run": "a", "reason": "the loss is nan"})
    assert "3/20" in caplog.messages[0]
    assert caplog.messages[1:] == [
        "a: a worker was lost, resuming from the last saved state (the node was shut down)",
        "a: FAILED, the loss is nan",
    ]


class EventSource:
    """Returns numbered events that a test adds, some of them late."""

    def __init__(self) -> None:
        self.waiting: list[TrainingEvent] = []

    def add(self, *numbers: int) -> None:
        self.waiting += [{"event": "x", "run": str(number)} for number in numbers]

    def __call__(self) -> list[TrainingEvent]:
        events, self.waiting = self.waiting, []
        return events


def test_events_are_passed_on_during_training_and_the_last_ones_at_the_end():
    source, runs, others, received = EventSource(), [], [], threading.Event()

    def handle(event: TrainingEvent) -> None:
        runs.append(event["run"])
        received.set()

    with poll_events(source, handle, others.append):
        source.add(1, 2)
        assert received.wait(20)
        deadline = time.monotonic() + 20
        while len(runs) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        source.add(3)
    assert runs == ["1", "2", "3"] == [event["run"] for event in others]


def test_polling_ends_when_training_fails():
    source, runs = EventSource(), []
    with pytest.raises(RuntimeError, match="diverged"), poll_events(source, lambda event: runs.append(event["run"])):
        source.add(1)
        raise RuntimeError("diverged")
    assert runs == ["1"]
    assert "poll events" not in {thread.name for thread in threading.enumerate()}
