"""The interface of an engine (forward, backward, step, save, load) and the code that all engines share.

Engines need an initialized torch process group (one process is enough). Gradients are the mean over the global batch
for any number of ranks and accumulated micro-batches, because `backward` takes the global count.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lakd_ray.config import OptimConfig, TrainConfig
from lakd_ray.models import ClassifierOutput, EmotionClassifier
from lakd_ray.models.spec_augment import SpecAugmentMasks
from lakd_ray.train.engines.optimizer import (
    ExponentialMovingAverage,
    build_param_groups,
    make_lr_lambda,
    place_optimizer_state,
)

_EMA_FILE = "average.pt"
_NETWORK_PREFIX = "network."


class Engine(ABC):
    """A model with its optimizer and learning rate schedule.

    Args:
        model: a model on any device; it is moved to this process's device.
        optim: optimizer settings.
        train: engine settings.
        total_steps: optimizer steps of the complete run, for the schedule.

    Attributes:
        world_size: number of ranks.
        accumulation_steps: micro-batches in an optimizer step.
        dtype: precision of cached features that `forward` takes.
    """

    def __init__(self, model: EmotionClassifier, optim: OptimConfig, train: TrainConfig, *, total_steps: int) -> None:
        self.world_size = dist.get_world_size()
        self._previous_tf32 = _set_tf32((train.tf32, train.tf32))
        self.accumulation_steps = train.gradient_accumulation_steps
        self.dtype = torch.float32
        self._model = model
        if train.gradient_checkpointing:
            model.backbone.enable_gradient_checkpointing()
        if train.compile:
            model.backbone.compile()
        self._trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        groups = build_param_groups(model, optim)
        self._optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
        self._lr_lambda = make_lr_lambda(optim, total_steps)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._lr_lambda)
        self._ema_decay = optim.ema_decay
        self._ema: ExponentialMovingAverage | None = None
        self._micro_batches = 0

    def _init_ema(self) -> None:
        """Start averaging the weights, after they are on their final device."""
        if self._ema_decay:
            updated = [weight for group in self._optimizer.param_groups for weight in group["params"]]
            self._ema = ExponentialMovingAverage(updated, self._ema_decay)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device that holds the model."""

    @property
    def learning_rate(self) -> float:
        """Learning rate of the encoder in the next step; of the head if the encoder is frozen."""
        return float(self._scheduler.get_last_lr()[0])

    @property
    @abstractmethod
    def gradient_norm(self) -> float | None:
        """Gradient norm of the last step before clipping; None if it is not known."""

    @abstractmethod
    def forward(
        self,
        inputs: Tensor,
        lengths_B: Tensor,
        languages_B: Tensor | None = None,
        spec_augment: SpecAugmentMasks | None = None,
    ) -> ClassifierOutput:
        """Run the model as `EmotionClassifier.forward` does."""

    @abstractmethod
    def backward(self, loss_sum: Tensor, global_count: int) -> None:
        """Backpropagate a loss that is summed over this rank's micro-batch.

        Args:
            loss_sum: the sum.
            global_count: utterances in the optimizer step, over all ranks and micro-batches. The gradient becomes the
                mean over them.
        """

    def step(self) -> None:
        """Update the weights after the last micro-batch of an optimizer step."""
        self._step()
        self._micro_batches += 1
        if self._ema is not None and self._micro_batches % self.accumulation_steps == 0:
            self._ema.update()

    @abstractmethod
    def _step(self) -> None: ...

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Use eval mode, without gradients and with averaged weights if there are any, while the block runs."""
        self._model.eval()
        try:
            with self._ema_applied(), torch.inference_mode():
                yield
        finally:
            self._model.train()

    def full_state_dict(self) -> tuple[Any, dict[str, Tensor]]:
        """Return the network and its full fp32 state on the CPU, averaged if enabled; all ranks must call.

        Weights are those that the optimizer updates, not their copies in half precision. Other ranks than the first get
        an empty state.
        """
        with self._ema_applied():
            state = self._model_state_dict() | self._gather_weights()
            if dist.get_rank() != 0:
                return self._model.network, {}
            return self._model.network, {
                name.removeprefix(_NETWORK_PREFIX): _to_fp32_cpu(value) for name, value in state.items()
            }

    @contextmanager
    def _ema_applied(self) -> Iterator[None]:
        if self._ema is None:
            yield
            return
        try:
            with self._ema.swapped():
                self._publish_weights()
                yield
        finally:
            self._publish_weights()

    def _publish_weights(self) -> None:  # noqa: B027 -- by default the optimizer updates the model's own weights
        """Copy the fp32 weights that the optimizer updates to the model, on all ranks."""

    def _gather_weights(self) -> dict[str, Tensor]:
        """Return the fp32 weights that the optimizer updates, by name in the model; all ranks must call."""
        return {name: weight.detach() for name, weight in self._trainable.items()}

    @torch.no_grad()
    def _set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Set the fp32 weights that the optimizer updates, as `_gather_weights` returns them."""
        for name, weight in self._trainable.items():
            weight.copy_(values[name])

    def _model_state_dict(self) -> dict[str, Tensor]:
        """Return the model's state; those weights that `_gather_weights` returns may be missing."""
        return self._model.state_dict()

    def save(self, folder: Path) -> None:
        """Write model, optimizer and schedule; all ranks must call, and ranks on one machine may share the folder."""
        self._save(folder)
        if self._ema is None:
            return
        with self._ema.swapped():
            means = self._gather_weights()
            if dist.get_rank() == 0:
                state = {"steps": self._ema.num_updates, "means": [_to_fp32_cpu(mean) for mean in means.values()]}
                torch.save(state, folder / _EMA_FILE)

    @abstractmethod
    def _save(self, folder: Path) -> None: ...

    def load(self, folder: Path, *, world_size: int | None = None) -> None:
        """Restore what `save` wrote; all ranks must call. The files are pickles: load only trusted folders.

        Args:
            folder: the folder that `save` wrote.
            world_size: number of ranks that wrote it; the current number if None.
        """
        options = [
            {name: value for name, value in group.items() if name != "params"} for group in self._optimizer.param_groups
        ]
        self._load(folder, self.world_size if world_size is None else world_size)
        # The saved options can be those of a different device, and DeepSpeed gives all groups the ones of the first.
        rates = self._scheduler.get_last_lr()
        for group, current, rate in zip(self._optimizer.param_groups, options, rates, strict=True):
            group.update(current | {"lr": rate})
        place_optimizer_state(self._optimizer)
        if self._ema is not None:
            saved = torch.load(folder / _EMA_FILE, map_location="cpu", weights_only=True)
            self._ema.num_updates = saved["steps"]
            with self._ema.swapped():
                self._set_weights(dict(zip(self._trainable, saved["means"], strict=True)))

    @abstractmethod
    def _load(self, folder: Path, world_size: int) -> None: ...

    def set_schedule_step(self, step: int) -> None:
        """Set the learning rates to those after the given number of steps, if it differs from the saved number."""
        self._scheduler.last_epoch = step
        rates = [base * self._lr_lambda(step) for base in self._scheduler.base_lrs]
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._scheduler._last_lr = rates

    def max_abs_weight(self) -> float:
        """Return the largest absolute value of this rank's weights; NaN if one is NaN."""
        with torch.no_grad():
            maxima = [weight.abs().max() for weight in self._model.parameters() if weight.numel()]
            return float(torch.stack(maxima).max())

    def close(self) -> None:
        """Release the memory of model and optimizer, and undo the changes to torch's global settings."""
        _set_tf32(self._previous_tf32)


def _set_tf32(enabled: tuple[bool, bool]) -> tuple[bool, bool]:
    """Set whether (matrix products, convolutions) of this process use TF32 on GPUs, and return the previous setting."""
    previous = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = enabled
    return previous


def _to_fp32_cpu(value: Tensor) -> Tensor:
    return (value.float() if value.is_floating_point() else value).cpu().contiguous().clone()
