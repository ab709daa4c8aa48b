"""Plan the random masks of SpecAugment on the host, for a batch that is copied to the device together with them.

Drawing them in the forward pass, as transformers does, makes a GPU wait several times per step. Here each utterance has
its own seed, so its masks do not depend on the number of workers or on an interruption. The distribution is that of
transformers' `_compute_mask_indices`, except that the number of spans is rounded at random for each utterance instead
of once per batch.

Source: Park et al. 2019 (arXiv 1904.08779), and wav2vec 2.0 (arXiv 2006.11477), appendix B.

Shape suffixes: B utterances, F frames, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lakd_ray.errors import ConfigError

Seed = Sequence[int]
Mask = npt.NDArray[np.bool_]


class SpecAugmentMasks(NamedTuple):
    """The masks of a batch; None for a kind of mask that the network's configuration turns off."""

    time_BF: Tensor | None
    """True for the frames that `masked_spec_embed` replaces."""
    channels_BD: Tensor | None
    """True for the channels that are set to zero in all frames of the utterance."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "SpecAugmentMasks":
        """Copy the masks to a device."""
        return SpecAugmentMasks(
            *(None if mask is None else mask.to(device, non_blocking=non_blocking) for mask in self)
        )

    def pin_memory(self) -> "SpecAugmentMasks":
        """Copy the masks to pinned memory, from which copies to a GPU are asynchronous."""
        return SpecAugmentMasks(*(None if mask is None else mask.pin_memory() for mask in self))

    def apply(self, hidden_BFD: Tensor, masked_spec_embed: Tensor) -> Tensor:
        """Return the masked hidden states; the embedding gets a gradient even if no frame is masked."""
        if self.time_BF is not None:
            embedding_D = masked_spec_embed.to(hidden_BFD.dtype)
            hidden_BFD = torch.where(self.time_BF.unsqueeze(-1), embedding_D, hidden_BFD)
        return hidden_BFD if self.channels_BD is None else hidden_BFD.masked_fill(self.channels_BD.unsqueeze(1), 0)


@dataclass(frozen=True)
class SpanSettings:
    """How many spans of an axis are masked, as in the transformers configuration.

    Attributes:
        prob: share of the axis that spans would cover if they did not overlap.
        length: length of a span.
        min_spans: smallest number of spans.
    """

    prob: float
    length: int
    min_spans: int

    @classmethod
    def of_axis(cls, config: Any, axis: str) -> Self | None:
        """Return the settings of the axis `time` or `feature`; None if its masks are turned off."""
        prob = getattr(config, f"mask_{axis}_prob", 0.0)
        if not prob or not getattr(config, "apply_spec_augment", True):
            return None
        return cls(prob, getattr(config, f"mask_{axis}_length"), getattr(config, f"mask_{axis}_min_masks", 0))

    def draw(self, valid: int, size: int, random: np.random.Generator) -> Mask:
        """Draw a mask with spans among the first `valid` of `size` positions; none fits if they are too few."""
        mask = np.zeros(size, dtype=bool)
        spans = max(int(self.prob * valid / self.length + random.random()), self.min_spans)
        starts = valid - self.length + 1
        spans = min(spans, size // self.length, max(starts, 0))
        for start in random.choice(starts, spans, replace=False) if spans else ():
            mask[start : start + self.length] = True
        return mask


def plan_spec_augment(
    config: Any, num_frames: Sequence[int], hidden_size: int, seeds: Sequence[Seed]
) -> SpecAugmentMasks | None:
    """Draw the masks of a batch on the CPU; None if the configuration has no SpecAugment.

    Args:
        config: the transformers configuration of the encoder.
        num_frames: each utterance's number of frames; the batch has as many as the longest utterance.
        hidden_size: D.
        seeds: one seed for each utterance.

    Raises:
        ConfigError: a mask of channels is longer than the number of channels.
    """
    time, channels = SpanSettings.of_axis(config, "time"), SpanSettings.of_axis(config, "feature")
    if time is None and channels is None:
        return None
    if channels is not None and channels.length > hidden_size:
        raise ConfigError(
            f"`mask_feature_length` is {channels.length}, but the encoder has {hidden_size} channels: lower it, or set "
            "`mask_feature_prob` to 0"
        )
    padded = max(num_frames)
    time_rows, channel_rows = [], []
    for frames, seed in zip(num_frames, seeds, strict=True):
        random = np.random.default_rng(seed)
        if time is not None:
            time_rows.append(time.draw(frames, padded, random))
        if channels is not None:
            channel_rows.append(channels.draw(hidden_size, hidden_size, random))
    return SpecAugmentMasks(_stack(time_rows), _stack(channel_rows))


def _stack(rows: list[Mask]) -> Tensor | None:
    return torch.from_numpy(np.stack(rows)) if rows else None
