"""Define the configuration section `train`: workers, engine, precision, checkpoints and failures."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from lakd_ray.config.base import Section

_READER_CPUS_PER_GPU = 2  # one reads and decodes about 4,600 seconds of audio per second

_RAY_RESOLUTION = 10_000  # Ray counts resources in ten-thousandths


class TrainConfig(Section):
    """The workers, the training engine and the saved states."""

    workers: int = Field(1, ge=1)
    """Number of data-parallel Ray Train workers of one run."""
    cpus_per_worker: int = Field(1, ge=1)
    """Logical CPUs that one worker reserves; also its number of torch threads."""
    gpu: Literal["auto", True, False] = "auto"
    """Train and evaluate on GPUs; `auto`: if the cluster has enough of them for all workers."""
    gpus_per_worker: float = Field(1.0, gt=0, le=1)
    """GPU of each worker, or a fraction of a GPU that several runs or trials of one worker each share."""
    reader_cpus: int | None = Field(None, ge=1)
    """Logical CPUs that read and decode the data of each worker, on its node and as part of its reservation; null: two
    on a GPU, and one for all workers without GPUs."""
    parallel_runs: int = Field(1, ge=1)
    """Number of independent runs trained at the same time, each with its own workers."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """Training engine; `torch` computes the same without DeepSpeed, for debugging, with the full optimizer state on
    every worker."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward and backward pass; fp16 needs GPUs."""
    tf32: bool = True
    """Use TF32 (10 bits of mantissa) in matrix products and convolutions of fp32 numbers, on GPUs that have it; torch
    alone does so in convolutions only. false: full fp32."""
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
    """Timeout in seconds of collective operations of training. A worker that does not respond for half of it, because
    it is frozen or its machine is cut off, is replaced."""
    rank_wait_s: float = Field(3600.0, gt=0)
    """Longest wait in seconds for a different worker of the same run that saves its state or computes teacher logits
    or features, which takes some workers longer than others."""

    @property
    def device(self) -> Literal["auto", "cpu", "cuda"]:
        """Device of the workers, for `lakd_ray.devices.select_device`."""
        return "auto" if self.gpu == "auto" else "cuda" if self.gpu else "cpu"

    @property
    def reserved_gpus(self) -> float:
        """GPUs that each worker reserves; none while `gpu` is `auto`, which `lakd_ray.cluster` resolves."""
        return self.gpus_per_worker if self.gpu is True else 0.0

    @property
    def reader_cpus_per_worker(self) -> int:
        """Logical CPUs that read and decode the data of one worker at the same time."""
        return self.reader_cpus or (_READER_CPUS_PER_GPU if self.reserved_gpus else 1)

    def total_reader_cpus(self, workers: int) -> int:
        """Return the logical CPUs that read and decode the data of a number of workers."""
        shares_one = self.reader_cpus is None and not self.reserved_gpus
        return 1 if shares_one else workers * self.reader_cpus_per_worker

    def reserved_cpus(self, workers: int) -> float:
        """Return the logical CPUs that each of some workers reserves: its own, and its share of those that read data.

        Args:
            workers: number of workers that train at the same time.
        """
        share = math.floor(self.total_reader_cpus(workers) / workers * _RAY_RESOLUTION) / _RAY_RESOLUTION
        return self.cpus_per_worker + share

    @model_validator(mode="after")
    def _validate_gpus(self) -> Self:
        if self.workers > 1 and self.gpus_per_worker < 1:
            raise ValueError(
                f"the {self.workers} workers of a run cannot share a GPU, because NCCL needs one for each: found "
                f"train.gpus_per_worker: {self.gpus_per_worker:g}, set it to 1, or train.workers: 1"
            )
        return self

    @model_validator(mode="after")
    def _validate_engine(self) -> Self:
        if self.precision == "fp16" and self.gpu is False:
            raise ValueError("precision fp16 needs GPUs: set train.gpu: true or auto, or train.precision: bf16")
        if self.offload_optimizer and (self.gpu is False or self.engine != "deepspeed" or not self.zero_stage):
            raise ValueError(
                "`offload_optimizer` needs DeepSpeed with ZeRO on GPUs: set train.gpu: true or auto, train.engine: "
                "deepspeed and train.zero_stage to 1 or more, or train.offload_optimizer: false"
            )
        if self.compile and (self.gradient_checkpointing or (self.engine == "deepspeed" and self.zero_stage == 3)):
            raise ValueError(
                "`compile` works with neither ZeRO-3, which partitions the layers, nor `gradient_checkpointing`: set "
                "train.zero_stage to 2 or less and train.gradient_checkpointing: false, or train.compile: false"
            )
        return self
