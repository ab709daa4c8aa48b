"""The engine that uses DeepSpeed, with ZeRO stages 0 to 3."""

import inspect
import io
import logging
import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.cpp_extension import _get_build_directory

from lakd_ray.config import OptimConfig, TrainConfig
from lakd_ray.devices import select_device
from lakd_ray.errors import CheckpointError
from lakd_ray.extension_builds import limited_build
from lakd_ray.models import ClassifierOutput, EmotionClassifier
from lakd_ray.models.spec_augment import SpecAugmentMasks
from lakd_ray.scratch import scratch_folder
from lakd_ray.train.engines.base import Engine

logger = logging.getLogger(__name__)

_TAG = "state"
# DeepSpeed allocates a buffer of this size in every step. 50 MB in half precision use the full bandwidth of the links;
# DeepSpeed's own number, 500 million, takes 1 or 2 GB.
_BUCKET_WEIGHTS = 25_000_000


class DeepSpeedEngine(Engine):
    """Train with DeepSpeed, which averages over ranks and micro-batches, so loss sums are scaled by both first."""

    def __init__(
        self,
        model: EmotionClassifier,
        optim: OptimConfig,
        train: TrainConfig,
        *,
        total_steps: int,
        log: Callable[[str], None] = logger.info,
    ) -> None:
        device = select_device(train.device)
        os.environ["DS_ACCELERATOR"] = device.type
        if device.index is not None:
            os.environ["LOCAL_RANK"] = str(device.index)  # the index of DeepSpeed's device
        import deepspeed  # reads DS_ACCELERATOR when imported, and takes a second

        deepspeed.logger.setLevel("WARNING")
        if device.type == "cpu":
            _load_shared_memory_op(log)
        super().__init__(model, optim, train, total_steps=total_steps)
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(train.precision, torch.float32)
        self._zero_stage = train.zero_stage
        # Frozen weights are as the model was built, and may be most of it: do not save them. ZeRO-3 partitions them.
        has_frozen = any(not weight.requires_grad for weight in model.parameters())
        self._exclude_frozen = train.zero_stage < 3 and has_frozen
        rounded_or_partitioned = self.dtype != torch.float32 or train.zero_stage == 3
        self._frozen = {
            name: weight.detach().cpu().clone()
            for name, weight in model.named_parameters()
            if rounded_or_partitioned and not weight.requires_grad
        }
        self._previous_linear = nn.functional.linear
        num_weights = sum(weight.numel() for weight in self._trainable.values())
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=self._optimizer,
            lr_scheduler=self._scheduler,
            config=build_deepspeed_config(optim, train, num_weights),
            dist_init_required=False,
        )
        self._sometimes_unused = _sometimes_unused_weights(model)
        self._zero_gradients: Tensor | None = None
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
        with_gradients = torch.is_grad_enabled() and bool(self._sometimes_unused)
        with self._gather_sometimes_unused() if with_gradients else nullcontext():
            if with_gradients:
                # Autograd runs the newest nodes first, so the gradients of these weights come last, on every rank.
                zeros: Tensor = _ZeroGradients.apply(*self._sometimes_unused)  # type: ignore[no-untyped-call]  # in torch
                self._zero_gradients = zeros
            outputs: ClassifierOutput = self._engine(inputs, lengths_B, languages_B, spec_augment)
        return outputs

    def _gather_sometimes_unused(self) -> AbstractContextManager[Any]:
        """Gather the weights that ZeRO-3 does not gather itself, as no forward pass of their own module runs."""
        if self._zero_stage < 3:
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        gathered: AbstractContextManager[Any] = GatheredParameters(self._sometimes_unused)
        return gathered

    def backward(self, loss_sum: Tensor, global_count: int) -> None:
        """Backpropagate a loss sum as described in `Engine.backward`."""
        loss = loss_sum * (self.world_size * self.accumulation_steps / global_count)
        if self._zero_gradients is not None:
            loss, self._zero_gradients = loss + self._zero_gradients, None
        self._engine.backward(loss)

    def _step(self) -> None:
        self._engine.step()

    def _fp32_copies(self) -> list[tuple[Tensor, Tensor]]:
        """Return each trainable weight and its fp32 copy, with ZeRO stage 0 and half precision."""
        optimizer = self._engine.optimizer
        return [
            pair
            for weights, copies in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            for pair in zip(weights, copies, strict=True)
        ]

    @torch.no_grad()
    def _publish_weights(self) -> None:
        if self._zero_stage:
            self._engine.optimizer.update_lp_params()
        elif self.dtype != torch.float32:
            for weight, copy in self._fp32_copies():
                weight.copy_(copy)

    def _gather_weights(self) -> dict[str, Tensor]:
        if self._zero_stage:
            from deepspeed.utils import safe_get_full_fp32_param

            gathered = {}
            for name, weight in self._trainable.items():
                value = safe_get_full_fp32_param(weight)
                if dist.get_rank() == 0:
                    gathered[name] = value.cpu()
            return gathered
        if self.dtype == torch.float32:
            return super()._gather_weights()
        copies = {id(weight): copy.detach() for weight, copy in self._fp32_copies()}
        return {name: copies[id(weight)] for name, weight in self._trainable.items()}

    @torch.no_grad()
    def _set_weights(self, values: Mapping[str, Tensor]) -> None:
        if self._zero_stage:
            from deepspeed.utils import safe_set_full_fp32_param

            for name, weight in self._trainable.items():
                safe_set_full_fp32_param(weight, values[name])
        elif self.dtype == torch.float32:
            super()._set_weights(values)
        else:
            copies = {id(weight): copy for weight, copy in self._fp32_copies()}
            for name, weight in self._trainable.items():
                copies[id(weight)].copy_(values[name])

    def _model_state_dict(self) -> dict[str, Tensor]:
        return super()._model_state_dict() | self._frozen

    def _save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=self._exclude_frozen)

    def _load(self, folder: Path, world_size: int) -> None:
        if world_size == self.world_size:
            self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not self._exclude_frozen)
            return
        if self._zero_stage == 0:
            self._load_unpartitioned(folder)
            return
        with scratch_folder() as scratch:
            _convert_to_universal(folder / _TAG, Path(scratch, _TAG))
            config = self._engine._config
            config.load_universal_checkpoint = True
            try:
                self._engine.load_checkpoint(str(scratch), tag=_TAG, load_module_strict=not self._exclude_frozen)
            finally:
                config.load_universal_checkpoint = False

    def _load_unpartitioned(self, folder: Path) -> None:
        """Load a state of ZeRO stage 0, where the first rank's file has the full state for any number of ranks."""
        (file,) = sorted(Path(folder, _TAG).glob("mp_rank_*_model_states.pt"))[:1]
        state = torch.load(file, map_location="cpu", weights_only=False)
        self._model.load_state_dict(state["module"], strict=not self._exclude_frozen)
        self._engine.optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["lr_scheduler"])

    def close(self) -> None:
        """Release the model and DeepSpeed's buffers, which its hooks and global variables reference."""
        self._engine.destroy()
        _forget_modules()
        nn.functional.linear = self._previous_linear  # ZeRO-3 replaces it
        super().close()


def _forget_modules() -> None:
    """Clear the global variables of DeepSpeed that hold modules and weights of this process's ZeRO-3 engines."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    cached = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(cached).nonlocals["func"].cache_clear()


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


def _load_shared_memory_op(log: Callable[[str], None]) -> None:
    """Build and load the op with which DeepSpeed communicates on CPUs; it would do so later without a deadline."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import __compatible_ops__

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not __compatible_ops__.get(builder.NAME, False) or builder.name in builder._loaded_ops:
        return
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with limited_build(folder, log, is_built=(folder / f"{builder.name}.so").exists()):
        builder.load(verbose=False)


class _ZeroGradients(torch.autograd.Function):
    """Return zero, and give each weight a gradient of zeros.

    Ranks reduce gradients in the order in which backward computes them, so a weight that the utterances of one rank do
    not use would shift those that follow, or leave the other ranks waiting.
    """

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> Tensor:
        ctx.weights, ctx.shapes = weights, [weight.shape for weight in weights]  # ZeRO-3 changes the shape afterwards
        return weights[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return tuple(weight.new_zeros(()).expand(shape) for weight, shape in zip(ctx.weights, ctx.shapes, strict=True))


def _sometimes_unused_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable weights of modules that have submodules.

    A module without submodules uses its weights whenever it runs. The code of one with submodules may use a weight of
    its own for some utterances only, as transformers does with SpecAugment's embedding.
    """
    return [
        weight
        for module in model.modules()
        if _has_code_of_its_own(module)
        for weight in module.parameters(recurse=False)
        if weight.requires_grad
    ]


def _has_code_of_its_own(module: nn.Module) -> bool:
    """Return whether a module has submodules, other than those by which torch computes a weight from others."""
    is_computed_weight = isinstance(module, parametrize.ParametrizationList)
    return not is_computed_weight and any(name != "parametrizations" for name, _ in module.named_children())


def build_deepspeed_config(optim: OptimConfig, train: TrainConfig, num_weights: int) -> dict[str, Any]:
    """Return the DeepSpeed configuration of an experiment's settings.

    Args:
        optim: optimizer settings.
        train: engine settings.
        num_weights: number of the model's trainable weights.
    """
    zero: dict[str, Any] = {"stage": train.zero_stage, "reduce_bucket_size": min(num_weights, _BUCKET_WEIGHTS)}
    if train.zero_stage == 3:
        # DeepSpeed's own limits, a billion weights, exceed the models here: none would ever be released.
        zero |= {
            "stage3_prefetch_bucket_size": min(num_weights // 8, _BUCKET_WEIGHTS),
            "stage3_max_live_parameters": num_weights // 4,
            "stage3_max_reuse_distance": num_weights // 4,
        }
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
