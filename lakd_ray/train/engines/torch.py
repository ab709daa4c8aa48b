"""The engine that uses torch alone, for debugging and as a reference for DeepSpeed.

Every rank has the full model and optimizer state.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lakd_ray.config import OptimConfig, TrainConfig
from lakd_ray.devices import select_device
from lakd_ray.models import ClassifierOutput, EmotionClassifier
from lakd_ray.models.spec_augment import SpecAugmentMasks
from lakd_ray.train.engines.base import Engine

_STATE_FILE = "plain.pt"


class TorchEngine(Engine):
    """Train with torch alone; half precision is autocast, with weights in fp32."""

    def __init__(self, model: EmotionClassifier, optim: OptimConfig, train: TrainConfig, *, total_steps: int) -> None:
        self._device = select_device(train.device)
        self._autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(train.precision)
        self._max_grad_norm = optim.max_grad_norm
        self._grad_norm: Tensor | None = None
        super().__init__(model.to(self.device), optim, train, total_steps=total_steps)
        self._scaler = torch.amp.grad_scaler.GradScaler(self.device.type, enabled=train.precision == "fp16")
        model.train()
        self._init_ema()

    @property
    def device(self) -> torch.device:
        """The GPU that this rank reserved, or the CPU."""
        return self._device

    @property
    def gradient_norm(self) -> float | None:
        """Gradient norm of the last step before clipping."""
        return None if self._grad_norm is None else float(self._grad_norm)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None)

    def forward(
        self,
        inputs: Tensor,
        lengths_B: Tensor,
        languages_B: Tensor | None = None,
        spec_augment: SpecAugmentMasks | None = None,
    ) -> ClassifierOutput:
        """Run the model as `EmotionClassifier.forward` does."""
        with self._autocast():
            outputs: ClassifierOutput = self._model(inputs, lengths_B, languages_B, spec_augment)
        return outputs

    def backward(self, loss_sum: Tensor, global_count: int) -> None:
        """Backpropagate a loss sum as described in `Engine.backward`."""
        self._scaler.scale(loss_sum / global_count).backward()  # type: ignore[no-untyped-call]  # untyped in torch

    def _step(self) -> None:
        if (self._micro_batches + 1) % self.accumulation_steps:
            return
        for weight in self._trainable.values():
            if weight.grad is None:  # unused by this rank's utterances
                weight.grad = torch.zeros_like(weight)
            if self.world_size > 1:
                dist.all_reduce(weight.grad)
        # After the reduction, so that an overflow on one rank lets all ranks skip the step and lower their scale.
        self._scaler.unscale_(self._optimizer)
        self._grad_norm = torch.nn.utils.clip_grad_norm_(self._trainable.values(), self._max_grad_norm).detach()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._scheduler.step()
        self._optimizer.zero_grad()

    def _stateful_objects(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "optimizer": self._optimizer,
            "scheduler": self._scheduler,
            "scaler": self._scaler,
        }

    def _save(self, folder: Path) -> None:
        if dist.get_rank() == 0:  # all ranks have the same state
            torch.save(
                {name: part.state_dict() for name, part in self._stateful_objects().items()}, folder / _STATE_FILE
            )

    def _load(self, folder: Path, world_size: int) -> None:
        state = torch.load(folder / _STATE_FILE, map_location="cpu", weights_only=True)
        for name, part in self._stateful_objects().items():
            part.load_state_dict(state[name])
