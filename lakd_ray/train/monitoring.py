"""What an epoch cost, and whether its loss is still a number."""

import math
import resource
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lakd_ray.errors import TrainingError
from lakd_ray.train.engines.base import Engine

# No mean loss or weight is so large unless weights have run away: chance is log C, and KL grows with T^2.
_DIVERGED = 1e4
_CHECK_STEPS = 20  # on a GPU, where looking waits for the device


class StepTimer:
    """Seconds spent in the parts of a step: on a GPU as its own queue sees them, so that what overlaps is not counted.

    Args:
        device: where the model lies.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._intervals: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = {}
        self._last_event: torch.cuda.Event | None = None
        self._last_time = 0.0
        self.start()

    def start(self) -> None:
        """Begin; what was before is not counted."""
        if self._cuda:
            self._last_event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # untyped in torch
            self._last_event.record()
        self._last_time = time.perf_counter()

    def mark(self, phase: str) -> None:
        """What has passed since the last lap was this part."""
        if self._cuda:
            before = self._last_event
            self.start()
            if before is not None and self._last_event is not None:
                self._intervals.append((phase, before, self._last_event))
            return
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last_time
        self._last_time = now

    def read_and_reset(self) -> dict[str, float]:
        """Seconds of each part since the last reading."""
        if self._cuda:
            torch.cuda.synchronize()
            for part, start, end in self._intervals:
                self._seconds[part] = self._seconds.get(part, 0.0) + start.elapsed_time(end) / 1000
            self._intervals = []
        seconds, self._seconds = self._seconds, {}
        return seconds


def peak_memory_mb(device: torch.device) -> float:
    """The most that this process has held: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class LossGuard:
    """Looks at the loss often enough that not much is trained in vain.

    Args:
        run: names it in the error.
    """

    def __init__(self, run_id: str, engine: Engine) -> None:
        self._run_id, self._engine = run_id, engine
        self._interval = 1 if engine.device.type == "cpu" else _CHECK_STEPS
        self._last_loss: float | None = None
        self._batches = 0

    def check_loss(self, loss_sum: Tensor, count: int, epoch: int, utterance_ids: Callable[[], Sequence[str]]) -> None:
        """Look at the sum over a batch of so many utterances.

        Args:
            names: tells which they are.

        Raises:
            TrainingError: it is not finite, or as high as no loss is; says what is known.
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
        before = (
            "" if self._last_loss is None else f" The last one that was looked at before was {self._last_loss:.3g}."
        )
        raise TrainingError(
            f"{self._run_id}: in epoch {epoch + 1} the loss is {mean:.3g} on {shown}.{before} {self._diagnose()} Epochs before "
            "are kept: start again with the changed experiment under another name."
        )

    def _diagnose(self) -> str:
        """What the weights and gradients say."""
        engine = self._engine
        norm = engine.gradient_norm
        told = f"Learning rate {engine.learning_rate:.2g}"
        told += "" if norm is None else f", last gradient norm {norm:.3g}"
        largest = engine.max_abs_weight()
        told += f", largest weight {largest:.3g}"
        if largest < _DIVERGED:
            return (
                f"{told}: weights are sound, so it comes from this batch or from half precision. Try "
                "train.precision: fp32, and look at these recordings."
            )
        return f"{told}: weights have run away. Lower optim.lr, raise optim.warmup_ratio or lower optim.max_grad_norm."
