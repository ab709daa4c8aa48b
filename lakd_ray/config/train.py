"""Define the configuration section `train`: workers, engine, precision, checkpoints and failures."""

from typing import Literal, Self

from pydantic import Field, model_validator

from lakd_ray.config.base import Section


class TrainConfig(Section):
    """The workers, the training engine and the saved states."""

    workers: int = Field(1, ge=1)
    """Number of data-parallel Ray Train workers of one run."""
    cpus_per_worker: int = Field(1, ge=1)
    """Logical CPUs that one worker reserves; also its number of torch threads."""
    gpu: bool = False
    """Give each worker one GPU."""
    parallel_runs: int = Field(1, ge=1)
    """Number of independent runs trained at the same time, each with its own workers."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """Training engine; `torch` computes the same without DeepSpeed, for debugging, with the full optimizer state on
    every worker."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward and backward pass; fp16 needs a GPU."""
    gradient_checkpointing: bool = False
    """Store only the inputs of each transformer layer and recompute the rest in backward: less memory, more time."""
    compile: bool = False
    """Apply torch.compile to the transformer layers: a minute or more at the start; the speedup is not measured yet."""
    offload_optimizer: bool = False
    """Keep the optimizer state in CPU memory; with DeepSpeed on GPUs only."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Number of micro-batches in one optimizer step."""
    cache_features: bool = False
    """Compute the output of the frozen part once and train from it; needs `freeze_feature_encoder` or
    `freeze_encoder`."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Number of optimizer steps between saved states within an epoch; null: save after each epoch only."""
    keep_resume_states: int = Field(2, ge=1)
    """Number of newest states to keep for resuming; a corrupted one is replaced by the one before it."""
    keep_checkpoints: int = Field(1, ge=1)
    """Number of checkpoints to keep, those of the best epochs on dev."""
    max_failures: int = Field(2, ge=0)
    """Number of consecutive restarts of a lost worker group without progress before the run fails."""
    collective_timeout_s: float = Field(600.0, gt=0)
    """Timeout in seconds of collective operations and of the start of workers."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Device of the workers, for `lakd_ray.devices.select_device`."""
        return "cuda" if self.gpu else "cpu"

    @model_validator(mode="after")
    def _validate_engine(self) -> Self:
        if self.precision == "fp16" and not self.gpu:
            raise ValueError("precision fp16 needs GPUs: set train.gpu: true, or train.precision: bf16")
        if self.offload_optimizer and not (self.gpu and self.engine == "deepspeed" and self.zero_stage):
            raise ValueError(
                "`offload_optimizer` needs DeepSpeed with ZeRO on GPUs: set train.gpu: true, train.engine: deepspeed "
                "and train.zero_stage to 1 or more, or train.offload_optimizer: false"
            )
        if self.compile and (self.gradient_checkpointing or (self.engine == "deepspeed" and self.zero_stage == 3)):
            raise ValueError(
                "`compile` works with neither ZeRO-3, which partitions the layers, nor `gradient_checkpointing`: set "
                "train.zero_stage to 2 or less and train.gradient_checkpointing: false, or train.compile: false"
            )
        return self
