"""Decide the device of a process: what Ray reserved for it, or outside Ray what is configured.

In a task or actor of Ray only a reservation counts. GPUs that a process did not reserve may still be visible to it,
where the cluster runs with RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0, but they belong to other processes.
"""

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lakd_ray.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    import torch  # takes seconds to load

DEVICE_PATTERN = r"auto|cpu|cuda(:\d+)?"


def select_device(configured: str = "auto") -> "torch.device":
    """Return the device on which this process computes.

    Args:
        configured: `cpu`, `cuda`, `cuda:INDEX`, or `auto`, a GPU if this process has one. A task or actor of Ray has
            the GPUs that Ray reserved for it, in the order of their numbers; other processes have all visible GPUs.

    Raises:
        ConfigError: the name of the device is not valid.
        ResourceError: a GPU is configured but not reserved or not visible, or torch cannot use a reserved one.
    """
    import torch

    if not re.fullmatch(DEVICE_PATTERN, configured):
        raise ConfigError(f"device {configured!r}: expected auto, cpu, cuda, or one of several GPUs, such as cuda:1")
    if configured == "cpu":
        return torch.device("cpu")
    in_ray = _in_ray_worker()
    gpus = _reserved_gpus() if in_ray else list(range(count_visible_gpus()))
    position = int(configured.partition(":")[2] or 0)
    if position < len(gpus):
        return torch.device("cuda", gpus[position])
    if configured == "auto":
        return torch.device("cpu")
    if in_ray:
        raise ResourceError(
            f"device {configured}: Ray reserved {len(gpus)} GPUs for this process. Reserve one where the task or actor "
            "is started (num_gpus=1), or use device auto or cpu"
        )
    raise ResourceError(
        f"device {configured}: torch {torch.__version__} can use {len(gpus)} GPUs of this machine. Use device auto or "
        "cpu, or see `lakd doctor` and CUDA_VISIBLE_DEVICES for the cause"
    )


def device_name(device: "torch.device") -> str:
    """Return `CPU` or the name of the GPU, for records and logs."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def process_group_backend(device_type: str) -> str:
    """Return the backend of torch's process group for ranks on devices of this type, `cpu` or `cuda`.

    On GPUs it has gloo beside NCCL, for objects and other tensors in host memory.
    """
    return "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"


def count_visible_gpus() -> int:
    """Return the number of GPUs that torch can use on this machine, and that a local cluster has.

    The first GPU for which torch was not built ends the count, because Ray numbers GPUs in the order of torch.
    """
    import torch

    if not torch.cuda.is_available():
        return 0
    architectures = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        if not is_architecture_supported(gpu.major, gpu.minor, architectures):
            return index
    return torch.cuda.device_count()


def is_architecture_supported(major: int, minor: int, architectures: Sequence[str]) -> bool:
    """Return whether code for some architectures runs on a GPU with this compute capability.

    Args:
        major: major version of the capability.
        minor: minor version of the capability.
        architectures: names as in `torch.cuda.get_arch_list()`. Machine code (sm_80) runs on the same major and at
            least its minor version, sm_90a only on exactly 9.0, and PTX (compute_80) on anything later.
    """
    for name in architectures:
        kind, _, version = name.partition("_")
        digits = version.rstrip("af")
        built_major, built_minor = int(digits[:-1]), int(digits[-1])
        if kind == "compute" and (built_major, built_minor) <= (major, minor):
            return True
        if built_major == major and (built_minor == minor or (built_minor < minor and not version.endswith("a"))):
            return True
    return False


def processes_per_gpu(fraction: float) -> int:
    """Return how many processes that each reserve a fraction of a GPU fit on one GPU."""
    return int(1 / fraction + 1e-9)


def _in_ray_worker() -> bool:
    """Return whether this process runs tasks or an actor of Ray; a driver does not."""
    ray = sys.modules.get("ray")  # a process without it is no worker, and importing it takes a second
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def _reserved_gpus() -> list[int]:
    """Return torch's indices of the GPUs that Ray reserved for this process.

    Raises:
        ResourceError: torch cannot use them, or they are not visible.
    """
    import torch

    ids = sys.modules["ray"].get_runtime_context().get_accelerator_ids()["GPU"]
    if not ids:
        return []
    found = f"Ray reserved GPU {', '.join(ids)} for this process"
    unusable = ResourceError(
        f"{found}, but torch {torch.__version__} cannot use it. `lakd doctor` shows the cause; to compute on CPUs, "
        "set train.gpu: false and serve.gpus: 0"
    )
    usable = count_visible_gpus()
    if not usable:
        raise unusable
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # set by Ray, unless RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES
    names = [str(index) for index in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    if missing := [name for name in ids if name not in names]:
        raise ResourceError(
            f"{found}, but GPU {', '.join(missing)} is not in CUDA_VISIBLE_DEVICES={visible}. Leave that to Ray"
        )
    indices = sorted(names.index(name) for name in ids)
    if indices[-1] >= usable:
        raise unusable
    return indices
