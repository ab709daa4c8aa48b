"""Measure the time and memory of training, and stop it when the loss diverges."""

import gc
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lakd_ray.errors import TrainingError
from lakd_ray.train.engines.base import Engine

# No mean loss or weight is this large unless training diverged: chance level is log C, and KL grows with T^2.
_DIVERGED = 1e4
_CHECK_STEPS = 20  # on a GPU, where reading the loss synchronizes with the device
# Notice of a preemption comes 30 seconds ahead or more, and saving a state takes some of them.
_NOTICE_CHECK_S = 5.0
_MAX_GROWTH = 10  # of the number of steps between checks, as the duration of a few steps is a rough estimate


class StepTimer:
    """Measure the seconds of each phase of a step, on a GPU with events in its queue, which exclude overlapped work.

    Args:
        device: the device of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._intervals: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = {}
        self._last_event: torch.cuda.Event | None = None
        self._last_time = 0.0
        self.start()

    def start(self) -> None:
        """Start the current phase; time before this call is not counted."""
        if self._cuda:
            self._last_event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # untyped in torch
            self._last_event.record()
        self._last_time = time.perf_counter()

    def mark(self, phase: str) -> None:
        """Assign the time since the last mark to a phase."""
        if self._cuda:
            start = self._last_event
            self.start()
            if start is not None and self._last_event is not None:
                self._intervals.append((phase, start, self._last_event))
            return
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last_time
        self._last_time = now

    def read_and_reset(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call."""
        if self._last_event is not None:
            self._last_event.synchronize()  # the newest event: the device of the model, whatever the current one is
            for phase, start, end in self._intervals:
                self._seconds[phase] = self._seconds.get(phase, 0.0) + start.elapsed_time(end) / 1000
            self._intervals = []
        seconds, self._seconds = self._seconds, {}
        return seconds


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory_mb`; on the CPU, where this is possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux only, and not in every container
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process since `reset_peak_memory`, of the GPU or else of the host, in MiB.

    On a host that cannot reset it, it is the peak since the process started.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):  # no /proc
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if peak:
            return int(peak[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def release_memory(device: torch.device) -> None:
    """Free the memory of objects that are no longer referenced, cycles included, for other processes on the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def finite_or_none(value: float | None) -> float | None:
    """Replace infinity and NaN, which JSON does not have; a step that fp16 skips has such a gradient norm."""
    return value if value is None or math.isfinite(value) else None


Notice = Literal["", "preemption", "stop"]
"""Why a state must be saved now: a machine will be preempted soon, or the driver was interrupted and the run ends."""


class NoticeCheck:
    """Look for a notice about every few seconds, after the same steps on all ranks.

    A check is a barrier, so ranks cannot go by their own clocks: after each check the first rank derives the number of
    steps until the next one from the duration of its steps.

    Args:
        read_notice: returns the notice, or an empty string; all ranks must call it.
        device: device of the process group's tensors.
    """

    def __init__(self, read_notice: Callable[[], Notice], device: torch.device) -> None:
        self._read_notice, self._device = read_notice, device
        self._interval = 1
        self._steps, self._seconds, self._last_time = 0, 0.0, 0.0

    def start(self) -> None:
        """Start the clock; time before this call is not that of a step."""
        self._last_time = time.perf_counter()

    def after_step(self) -> Notice:
        """Return the notice if a check was due after this step, and otherwise none."""
        now = time.perf_counter()
        self._steps, self._seconds, self._last_time = self._steps + 1, self._seconds + now - self._last_time, now
        if self._steps < self._interval:
            return ""
        interval = torch.tensor(int(_NOTICE_CHECK_S * self._steps / max(self._seconds, 1e-6)), device=self._device)
        dist.broadcast(interval, src=0)
        self._interval = max(1, min(int(interval), _MAX_GROWTH * self._interval))
        self._steps, self._seconds = 0, 0.0
        return self._read_notice()

    def after_epoch(self) -> Notice:
        """Return the notice; after an epoch a check is always due."""
        return self._read_notice()


class LossGuard:
    """Stop the run when the loss is NaN, infinite or far too high.

    Args:
        run_id: for the error message.
        engine: read for diagnostics.
    """

    def __init__(self, run_id: str, engine: Engine) -> None:
        self._run_id, self._engine = run_id, engine
        self._interval = 1 if engine.device.type == "cpu" else _CHECK_STEPS
        self._last_loss: float | None = None
        self._batches = 0

    def check_loss(self, loss_sum: Tensor, count: int, epoch: int, utterance_ids: Callable[[], Sequence[str]]) -> None:
        """Check the loss of a batch, on a GPU only every few batches.

        Args:
            loss_sum: sum over the utterances of the batch.
            count: number of utterances in the batch.
            epoch: index of the epoch.
            utterance_ids: returns the ids of the utterances, for the error message.

        Raises:
            TrainingError: the loss is not finite or has diverged; the message includes diagnostics.
        """
        self._batches += 1
        if self._batches % self._interval:
            return
        mean = float(loss_sum.detach()) / count
        if math.isfinite(mean) and abs(mean) < _DIVERGED:
            self._last_loss = mean
            return
        utterances = utterance_ids()
        shown = ", ".join(utterances[:4]) + (f" and {len(utterances) - 4} more" if len(utterances) > 4 else "")
        previous = "" if self._last_loss is None else f" The previously checked loss was {self._last_loss:.3g}."
        raise TrainingError(
            f"{self._run_id}: in epoch {epoch + 1} the loss is {mean:.3g} on {shown}.{previous} {self._diagnose()} "
            "Completed epochs remain: start again with the changed experiment under a new name."
        )

    def _diagnose(self) -> str:
        """Describe the likely cause by the size of weights and gradients."""
        engine = self._engine
        norm = engine.gradient_norm
        summary = f"Learning rate {engine.learning_rate:.2g}"
        summary += "" if norm is None else f", last gradient norm {norm:.3g}"
        largest = engine.max_abs_weight()
        summary += f", largest weight {largest:.3g}"
        if largest < _DIVERGED:
            return (
                f"{summary}: the weights are normal, so the cause is this batch or half precision. Set "
                "train.precision: fp32, and check these recordings."
            )
        return (
            f"{summary}: the weights have diverged. Lower optim.lr, raise optim.warmup_ratio or lower "
            "optim.max_grad_norm."
        )
