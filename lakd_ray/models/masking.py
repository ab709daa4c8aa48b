"""Which frames are an utterance's own, and what goes into a transformer's layers.

Shape suffixes: B utterances, F frames.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def length_mask(max_length: int, lengths_B: Tensor) -> Tensor:
    """Which frames are an utterance's own, shape [B, F]."""
    return torch.arange(max_length, device=lengths_B.device) < lengths_B.unsqueeze(1)


@contextmanager
def capture_inputs(layers: Any) -> Iterator[list[Tensor]]:
    """What each of some layers is given while the block runs."""
    found: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: found.append(given[0])) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
