"""Test the peak of memory and the checks for a preemption."""

import sys

import pytest
import torch
import torch.distributed as dist

from lakd_ray.train import monitoring
from lakd_ray.train.monitoring import Notice, NoticeCheck, peak_memory_mb, reset_peak_memory

CPU = torch.device("cpu")


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(monitoring, "time", clock)
    return clock


class Checks:
    """Count the steps between checks for a preemption."""

    def __init__(self, clock: Clock, *, pending: bool = False) -> None:
        self._clock, self._pending = clock, pending
        self.steps, self.times, self._step = list[int](), list[float](), 0
        self.check = NoticeCheck(self._read_notice, CPU)
        self.check.start()

    def _read_notice(self) -> Notice:
        self.steps.append(self._step)
        self.times.append(self._clock.now)
        return "preemption" if self._pending else ""

    def run(self, steps: int, seconds: float) -> list[Notice]:
        """Train steps of the given duration; return the results of the checks after them."""
        results = []
        for _ in range(steps):
            self._step += 1
            self._clock.now += seconds
            results.append(self.check.after_step())
        return results


@pytest.mark.parametrize("seconds", [0.02, 0.3, 3.0, 60.0])
def test_a_preemption_is_checked_every_few_seconds(single_rank: None, clock: Clock, seconds: float):
    checks = Checks(clock)
    checks.run(2000, seconds)
    gaps = [after - before for before, after in zip(checks.times, checks.times[1:], strict=False)]
    assert max(gaps) <= max(5.0, seconds) + 1e-6
    assert gaps[-1] > max(4.0, 0.9 * seconds) or seconds == 3.0


def test_slow_first_steps_do_not_delay_later_checks_and_evaluation_is_not_counted(single_rank: None, clock: Clock):
    checks = Checks(clock)
    checks.run(1, 90.0)  # layers are compiled
    checks.run(200, 0.1)
    assert checks.steps[:3] == [1, 2, 12]
    before = len(checks.steps)
    clock.now += 600
    checks.check.start()
    checks.run(200, 0.1)
    assert len(checks.steps) - before == pytest.approx(200 * 0.1 / 5, abs=1)


def test_only_a_pending_preemption_is_reported(single_rank: None, clock: Clock):
    assert any(Checks(clock, pending=True).run(20, 1.0))
    assert not any(Checks(clock).run(20, 1.0))


def test_the_first_rank_decides_when_to_check(single_rank: None, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    """The other ranks may be slower or faster, but must check after the same steps."""

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        tensor.fill_(3)

    monkeypatch.setattr(dist, "broadcast", broadcast)
    for seconds in (0.001, 100.0):
        checks = Checks(clock)
        checks.run(10, seconds)
        assert checks.steps == [1, 4, 7, 10]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_the_peak_of_memory_is_that_of_the_run():
    size = 2**28
    before = bytearray(size)
    before[::4096] = b"1" * len(before[::4096])
    del before
    high = peak_memory_mb(CPU)
    reset_peak_memory(CPU)
    assert peak_memory_mb(CPU) < high - size / 2**20 / 2
