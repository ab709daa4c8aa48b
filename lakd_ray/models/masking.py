"""Build length masks, and capture the inputs of transformer layers.

Shape suffixes: B utterances, F frames.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def length_mask(max_length: int, lengths_B: Tensor) -> Tensor:
    """Return a mask that is true for the first `lengths_B` frames of each utterance, shape [B, F]."""
    return torch.arange(max_length, device=lengths_B.device) < lengths_B.unsqueeze(1)


@contextmanager
def capture_inputs(layers: Any) -> Iterator[list[Tensor]]:
    """Collect the input of each of the layers while the block runs."""
    captured: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: captured.append(args[0])) for layer in layers]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()
