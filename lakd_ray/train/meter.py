"""What an epoch cost, and whether its loss is still a number."""

import math
import resource
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lakd_ray.errors import TrainingError
from lakd_ray.train.engine import Engine

# No mean loss or weight is so large unless weights have run away: chance is log C, and KL grows with T^2.
_EXPLODED = 1e4
_CHECK_STEPS = 20  # on a GPU, where looking waits for the device


class Stopwatch:
    """Seconds spent in the parts of a step: on a GPU as its own queue sees them, so that what overlaps is not counted.

    Args:
        device: where the model lies.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._laps: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = {}
        self._event: torch.cuda.Event | None = None
        self._time = 0.0
        self.start()

    def start(self) -> None:
        """Begin; what was before is not counted."""
        if self._cuda:
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # untyped in torch
            self._event.record()
        self._time = time.perf_counter()

    def lap(self, part: str) -> None:
        """What has passed since the last lap was this part."""
        if self._cuda:
            before = self._event
            self.start()
            if before is not None and self._event is not None:
                self._laps.append((part, before, self._event))
            return
        now = time.perf_counter()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._time
        self._time = now

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last reading."""
        if self._cuda:
            torch.cuda.synchronize()
            for part, start, end in self._laps:
                self._seconds[part] = self._seconds.get(part, 0.0) + start.elapsed_time(end) / 1000
            self._laps = []
        seconds, self._seconds = self._seconds, {}
        return seconds


def peak_memory_mb(device: torch.device) -> float:
    """The most that this process has held: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Check:
    """Looks at the loss often enough that not much is trained in vain.

    Args:
        run: names it in the error.
    """

    def __init__(self, run: str, engine: Engine) -> None:
        self._run, self._engine = run, engine
        self._every = 1 if engine.device.type == "cpu" else _CHECK_STEPS
        self._last: float | None = None
        self._batches = 0

    def look(self, loss: Tensor, count: int, epoch: int, names: Callable[[], Sequence[str]]) -> None:
        """Look at the sum over a batch of so many utterances.

        Args:
            names: tells which they are.

        Raises:
            TrainingError: it is not finite, or as high as no loss is; says what is known.
        """
        self._batches += 1
        if self._batches % self._every:
            return
        mean = float(loss.detach()) / count
        if math.isfinite(mean) and abs(mean) < _EXPLODED:
            self._last = mean
            return
        utterances = names()
        shown = ", ".join(utterances[:4]) + (f" and {len(utterances) - 4} more" if len(utterances) > 4 else "")
        before = "" if self._last is None else f" The last one that was looked at before was {self._last:.3g}."
        raise TrainingError(
            f"{self._run}: in epoch {epoch + 1} the loss is {mean:.3g} on {shown}.{before} {self._why()} Epochs before "
            "are kept: start again with the changed experiment under another name."
        )

    def _why(self) -> str:
        """What the weights and gradients say."""
        engine = self._engine
        norm = engine.gradient_norm
        told = f"Learning rate {engine.learning_rate:.2g}"
        told += "" if norm is None else f", last gradient norm {norm:.3g}"
        largest = engine.largest_weight()
        told += f", largest weight {largest:.3g}"
        if largest < _EXPLODED:
            return (
                f"{told}: weights are sound, so it comes from this batch or from half precision. Try "
                "train.precision: fp32, and look at these recordings."
            )
        return f"{told}: weights have run away. Lower optim.lr, raise optim.warmup or lower optim.clip."
