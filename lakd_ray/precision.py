"""Compute statistics in fp32 where the network computes in half precision.

fp16 overflows above 65,504, which the sum of squares of a second of audio exceeds, and bf16 has 8 bits of precision.
Means, variances, norms and softmax over frames or classes are therefore computed from `upcast` values.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def upcast(tensor: Tensor) -> Tensor:
    """Convert half precision to fp32; fp32 and float64 stay as they are."""
    return tensor.to(upcast_dtype(tensor))


def upcast_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of `upcast`, for reductions that accumulate in it without a copy of their input."""
    return torch.promote_types(tensor.dtype, torch.float32)


def autocast_disabled(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast, which would compute matrix products of `upcast` values in half precision.

    Without autocast this does nothing, so an exported graph has no trace of it.
    """
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()
