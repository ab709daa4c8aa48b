"""The training engine: DeepSpeed behind a small interface. No Ray.

Needs an initialised torch process group (one process is enough). Gradients come out as the mean over the global batch
whatever the number of ranks and accumulated micro-batches, because `backward` is told the global count.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lakd_ray.config import Optim, Train
from lakd_ray.models import EmotionClassifier, Outputs

_TAG = "state"


class Engine:
    """A model, its optimizer and schedule under DeepSpeed.

    Args:
        model: on any device; DeepSpeed moves it.
        steps: optimizer steps of the whole run, for the schedule.
    """

    def __init__(self, model: EmotionClassifier, optim: Optim, train: Train, *, steps: int) -> None:
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed  # reads DS_ACCELERATOR when imported, and takes a second

        deepspeed.logger.setLevel("WARNING")
        self.world = dist.get_world_size()
        self.accumulation = train.accumulation
        self.dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        optimizer = torch.optim.AdamW(parameter_groups(model, optim), lr=optim.lr, betas=optim.betas)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(optim, steps))
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=scheduler,
            config=_deepspeed_config(optim, train),
            dist_init_required=False,
        )

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return torch.device(self._engine.device)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self._engine.get_lr()[0])

    def forward(self, inputs: Tensor, lengths_B: Tensor, languages_B: Tensor | None = None) -> Outputs:
        """The model's answer."""
        outputs: Outputs = self._engine(inputs, lengths_B, languages_B)
        return outputs

    def backward(self, loss_sum: Tensor, global_count: int) -> None:
        """Backpropagate a sum over this rank's micro-batch.

        Args:
            global_count: utterances in the optimizer step, over all ranks and micro-batches. DeepSpeed averages over
                ranks and accumulated micro-batches; scaling by both makes the result the mean over those utterances.
        """
        self._engine.backward(loss_sum * (self.world * self.accumulation / global_count))

    def step(self) -> None:
        """Update the weights if this was the last micro-batch of the step."""
        self._engine.step()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode without gradients, then training mode again."""
        self._engine.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self._engine.train()

    def weights(self) -> tuple[Any, dict[str, Tensor]]:
        """The transformers network and its whole state in fp32 on the CPU; all ranks must call (ZeRO-3 gathers)."""
        model: EmotionClassifier = self._engine.module
        if self._engine.zero_optimization_partition_weights():
            state = self._engine._zero3_consolidated_16bit_state_dict() or {}
        else:
            state = model.state_dict()
        prefix = "network."
        return model.network, {
            name.removeprefix(prefix): (value.float() if value.is_floating_point() else value).cpu().contiguous()
            for name, value in state.items()
        }

    def save(self, folder: Path) -> None:
        """Write model, optimizer and schedule; all ranks must call, ranks on one machine may share the folder."""
        self._engine.save_checkpoint(str(folder), tag=_TAG)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote; all ranks must call. DeepSpeed's files are pickles: only folders of one's own."""
        self._engine.load_checkpoint(str(folder), tag=_TAG)

    def close(self) -> None:
        """Release the model and DeepSpeed's buffers."""
        self._engine.destroy()


def parameter_groups(model: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """Trainable parameters: matrices with weight decay, vectors (norms, biases) without."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def schedule(optim: Optim, steps: int) -> Callable[[int], float]:
    """Factor on the learning rate at each step: linear warm-up, then constant, linear or cosine decay to zero."""
    warmup = round(optim.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[optim.schedule]

    return factor


def _deepspeed_config(optim: Optim, train: Train) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # batches are planned by seconds; DeepSpeed only multiplies this
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": optim.clip,
        "zero_optimization": {"stage": train.zero_stage},
        "bf16": {"enabled": train.precision == "bf16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
