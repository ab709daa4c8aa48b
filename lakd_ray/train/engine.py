"""What the training loop asks of an engine: forward, backward, step, save, load. No Ray.

`lakd_ray.train.zero` is one with DeepSpeed, `lakd_ray.train.plain` one with torch; `lakd_ray.train.engines` chooses.

Engines need an initialised torch process group (one process is enough). Gradients come out as the mean over the global
batch whatever the number of ranks and accumulated micro-batches, because `backward` is told the global count.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lakd_ray.config import Optim, Train
from lakd_ray.models import EmotionClassifier, Outputs
from lakd_ray.train.optimizer import Average, parameter_groups, schedule

_AVERAGE = "average.pt"
_PREFIX = "network."


class Engine(ABC):
    """A model, its optimizer and schedule.

    Args:
        model: on any device; it is moved to this process's own.
        steps: optimizer steps of the whole run, for the schedule.

    Attributes:
        world: ranks.
        accumulation: micro-batches in an optimizer step.
        dtype: of cached features that are given to `forward`.
    """

    def __init__(self, model: EmotionClassifier, optim: Optim, train: Train, *, steps: int) -> None:
        self.world = dist.get_world_size()
        self.accumulation = train.accumulation
        self.dtype = torch.float32
        self._model = model
        if train.recompute:
            model.backbone.recompute()
        if train.compile:
            model.backbone.compile()
        groups = parameter_groups(model, optim)
        fused = torch.cuda.is_available() and not train.offload
        self._optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused)
        self._factor = schedule(optim, steps)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._factor)
        self._decay = optim.average
        self._average: Average | None = None
        self._micro_batches = 0

    def _start_average(self) -> None:
        """Once the weights are where they stay."""
        if self._decay:
            trained = [weight for weight in self._model.parameters() if weight.requires_grad]
            self._average = Average(trained, self._decay)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model lies."""

    @property
    def learning_rate(self) -> float:
        """The encoder's rate in the next step; the head's where the encoder is frozen."""
        return float(self._scheduler.get_last_lr()[0])

    @property
    @abstractmethod
    def gradient_norm(self) -> float | None:
        """Of the last step, before clipping; None where it is not known."""

    @abstractmethod
    def forward(self, inputs: Tensor, lengths_B: Tensor, languages_B: Tensor | None = None) -> Outputs:
        """The model's answer."""

    @abstractmethod
    def backward(self, loss_sum: Tensor, global_count: int) -> None:
        """Backpropagate a sum over this rank's micro-batch.

        Args:
            global_count: utterances in the optimizer step, over all ranks and micro-batches. The gradient becomes the
                mean over those.
        """

    def step(self) -> None:
        """Update the weights if this was the last micro-batch of the step."""
        self._step()
        self._micro_batches += 1
        if self._average is not None and self._micro_batches % self.accumulation == 0:
            self._average.update()

    @abstractmethod
    def _step(self) -> None: ...

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode without gradients and with averaged weights, if they are averaged; then training mode again."""
        self._model.eval()
        try:
            with self._averaged(), torch.inference_mode():
                yield
        finally:
            self._model.train()

    def weights(self) -> tuple[Any, dict[str, Tensor]]:
        """The transformers network and its whole state in fp32 on the CPU, averaged if it is; all ranks must call."""
        with self._averaged():
            state = {name.removeprefix(_PREFIX): _copied(value) for name, value in self._state().items()}
        return self._model.network, state

    def _averaged(self) -> Any:
        return self._average.applied() if self._average is not None else ExitStack()

    def _state(self) -> dict[str, Tensor]:
        """The model's state, gathered from all ranks."""
        return self._model.state_dict()

    def save(self, folder: Path) -> None:
        """Write model, optimizer and schedule; all ranks must call, ranks on one machine may share the folder."""
        self._save(folder)
        if self._average is not None and dist.get_rank() == 0:
            torch.save(self._average.state(), folder / _AVERAGE)

    @abstractmethod
    def _save(self, folder: Path) -> None: ...

    def load(self, folder: Path, *, world: int | None = None) -> None:
        """Restore what `save` wrote; all ranks must call. The files are pickles: only folders of one's own.

        Args:
            world: number of ranks that wrote it, if that may be another than now.
        """
        self._load(folder, self.world if world is None else world)
        if self._average is not None:
            self._average.restore(torch.load(folder / _AVERAGE, weights_only=True))

    @abstractmethod
    def _load(self, folder: Path, world: int) -> None: ...

    def at(self, step: int) -> None:
        """Put the schedule where it is after so many steps, if they are not those that were saved."""
        self._scheduler.last_epoch = step
        rates = [base * self._factor(step) for base in self._scheduler.base_lrs]
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._scheduler._last_lr = rates

    def largest_weight(self) -> float:
        """Of this rank's weights, without its sign; NaN if one is."""
        with torch.no_grad():
            largest = [weight.abs().max() for weight in self._model.parameters() if weight.numel()]
            return float(torch.stack(largest).max())

    def close(self) -> None:  # noqa: B027 -- nothing to do is fine
        """Release the model."""


def _copied(value: Tensor) -> Tensor:
    return (value.float() if value.is_floating_point() else value).cpu().contiguous().clone()
