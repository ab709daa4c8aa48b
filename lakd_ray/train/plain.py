"""The engine with torch alone: for debugging, and to hold DeepSpeed against. Every rank has all of the optimizer."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lakd_ray.config import Optim, Train
from lakd_ray.models import EmotionClassifier, Outputs
from lakd_ray.train.engine import Engine

_FILE = "plain.pt"


class PlainEngine(Engine):
    """See `Engine`. Half precision is autocast, with weights in fp32."""

    def __init__(self, model: EmotionClassifier, optim: Optim, train: Train, *, steps: int) -> None:
        self._device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
        self._half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(train.precision)
        self._clip = optim.clip
        self._norm: Tensor | None = None
        super().__init__(model.to(self.device), optim, train, steps=steps)
        self._scaler = torch.amp.grad_scaler.GradScaler(self.device.type, enabled=train.precision == "fp16")
        self._trained = [weight for weight in model.parameters() if weight.requires_grad]
        model.train()
        self._start_average()

    @property
    def device(self) -> torch.device:
        """This rank's GPU, or the CPU."""
        return self._device or torch.device("cpu")

    @property
    def gradient_norm(self) -> float | None:
        """Of the last step, before clipping."""
        return None if self._norm is None else float(self._norm)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self._half, enabled=self._half is not None)

    def forward(self, inputs: Tensor, lengths_B: Tensor, languages_B: Tensor | None = None) -> Outputs:
        """The model's answer."""
        with self._autocast():
            outputs: Outputs = self._model(inputs, lengths_B, languages_B)
        return outputs

    def backward(self, loss_sum: Tensor, global_count: int) -> None:
        """See `Engine`."""
        self._scaler.scale(loss_sum / global_count).backward()  # type: ignore[no-untyped-call]  # untyped in torch

    def _step(self) -> None:
        if (self._micro_batches + 1) % self.accumulation:
            return
        self._scaler.unscale_(self._optimizer)
        for weight in self._trained:
            if weight.grad is None:  # a part that this rank's utterances had no use for
                weight.grad = torch.zeros_like(weight)
            if self.world > 1:
                dist.all_reduce(weight.grad)
        self._norm = torch.nn.utils.clip_grad_norm_(self._trained, self._clip).detach()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._scheduler.step()
        self._optimizer.zero_grad()

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "optimizer": self._optimizer,
            "scheduler": self._scheduler,
            "scaler": self._scaler,
        }

    def _save(self, folder: Path) -> None:
        if dist.get_rank() == 0:  # all ranks have the same
            torch.save({name: part.state_dict() for name, part in self._parts().items()}, folder / _FILE)

    def _load(self, folder: Path, world: int) -> None:
        state = torch.load(folder / _FILE, map_location=self.device, weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
