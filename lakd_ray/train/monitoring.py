"""Measure the time and memory of training, and stop it when the loss diverges."""

import math
import resource
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lakd_ray.errors import TrainingError
from lakd_ray.train.engines.base import Engine

# No mean loss or weight is this large unless training diverged: chance level is log C, and KL grows with T^2.
_DIVERGED = 1e4
_CHECK_STEPS = 20  # on a GPU, where reading the loss synchronizes with the device


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
        if self._cuda:
            torch.cuda.synchronize()
            for phase, start, end in self._intervals:
                self._seconds[phase] = self._seconds.get(phase, 0.0) + start.elapsed_time(end) / 1000
            self._intervals = []
        seconds, self._seconds = self._seconds, {}
        return seconds


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process, of the GPU or else of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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
