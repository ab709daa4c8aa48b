"""The engine that uses DeepSpeed, with ZeRO stages 0 to 3."""

import io
import os
import tempfile
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lakd_ray.config import OptimConfig, TrainConfig
from lakd_ray.devices import select_device
from lakd_ray.errors import CheckpointError
from lakd_ray.models import ClassifierOutput, EmotionClassifier
from lakd_ray.models.spec_augment import SpecAugmentMasks
from lakd_ray.train.engines.base import Engine

_TAG = "state"


class DeepSpeedEngine(Engine):
    """Train with DeepSpeed, which averages over ranks and micro-batches, so loss sums are scaled by both first."""

    def __init__(self, model: EmotionClassifier, optim: OptimConfig, train: TrainConfig, *, total_steps: int) -> None:
        device = select_device(train.device)
        os.environ["DS_ACCELERATOR"] = device.type
        if device.index is not None:
            os.environ["LOCAL_RANK"] = str(device.index)  # the index of DeepSpeed's device
        import deepspeed  # reads DS_ACCELERATOR when imported, and takes a second

        deepspeed.logger.setLevel("WARNING")
        super().__init__(model, optim, train, total_steps=total_steps)
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(train.precision, torch.float32)
        self._zero_stage = train.zero_stage
        # Frozen weights are as the model was built, and may be most of it: do not save them. ZeRO-3 partitions them.
        self._exclude_frozen = train.zero_stage < 3 and any(not weight.requires_grad for weight in model.parameters())
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=self._optimizer,
            lr_scheduler=self._scheduler,
            config=build_deepspeed_config(optim, train),
            dist_init_required=False,
        )
        self._init_ema()

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return torch.device(self._engine.device)

    @property
    def gradient_norm(self) -> float | None:
        """Gradient norm of the last step before clipping; None with ZeRO stage 0."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def forward(
        self,
        inputs: Tensor,
        lengths_B: Tensor,
        languages_B: Tensor | None = None,
        spec_augment: SpecAugmentMasks | None = None,
    ) -> ClassifierOutput:
        """Run the model as `EmotionClassifier.forward` does."""
        outputs: ClassifierOutput = self._engine(inputs, lengths_B, languages_B, spec_augment)
        return outputs

    def backward(self, loss_sum: Tensor, global_count: int) -> None:
        """Backpropagate a loss sum as described in `Engine.backward`."""
        self._engine.backward(loss_sum * (self.world_size * self.accumulation_steps / global_count))

    def _step(self) -> None:
        self._engine.step()

    def _model_state_dict(self) -> dict[str, Tensor]:
        if self._engine.zero_optimization_partition_weights():
            return self._engine._zero3_consolidated_16bit_state_dict() or {}
        return super()._model_state_dict()

    def _save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=self._exclude_frozen)

    def _load(self, folder: Path, world_size: int) -> None:
        if world_size == self.world_size:
            self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not self._exclude_frozen)
            return
        if self._zero_stage == 0:
            self._load_unpartitioned(folder)
            return
        decays = [group["weight_decay"] for group in self._engine.optimizer.param_groups]
        with tempfile.TemporaryDirectory(prefix="lakd-") as scratch:
            _convert_to_universal(folder / _TAG, Path(scratch, _TAG))
            config = self._engine._config
            config.load_universal_checkpoint = True
            try:
                self._engine.load_checkpoint(scratch, tag=_TAG, load_module_strict=not self._exclude_frozen)
            finally:
                config.load_universal_checkpoint = False
        # ZeRO-3 gives all groups the decay of the first one, and a shared step counter that each would increment.
        for group, decay in zip(self._engine.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in self._optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    def _load_unpartitioned(self, folder: Path) -> None:
        """Load a state of ZeRO stage 0, where the first rank's file has the full state for any number of ranks."""
        (file,) = sorted(Path(folder, _TAG).glob("mp_rank_*_model_states.pt"))[:1]
        state = torch.load(file, map_location="cpu", weights_only=False)
        self._model.load_state_dict(state["module"], strict=not self._exclude_frozen)
        self._engine.optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["lr_scheduler"])

    def close(self) -> None:
        """Release the model and DeepSpeed's buffers."""
        self._engine.destroy()


def _convert_to_universal(source: Path, target: Path) -> None:
    """Convert a state with DeepSpeed's own tool so that any number of ranks can load it.

    Raises:
        CheckpointError: DeepSpeed cannot convert it.
    """
    from deepspeed.checkpoint import ds_to_universal

    settings = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints its steps
            ds_to_universal.main(settings)
    except (AssertionError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"cannot convert {source} for a different number of workers: {error}. Resume with the same number."
        ) from error


def build_deepspeed_config(optim: OptimConfig, train: TrainConfig) -> dict[str, Any]:
    """Return the DeepSpeed configuration of an experiment's settings."""
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,  # batches are planned by seconds; DeepSpeed uses this only as a factor
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": optim.max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW works on the CPU and the GPU
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
