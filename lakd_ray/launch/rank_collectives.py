"""Collective operations that the ranks of a worker group run before training.

They broadcast a decision, compute teacher logits and cache features.

Each rank computes its share on its own device, so that no operation waits for resources that the group itself holds.
All ranks must call these functions, in the same order. No Ray.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from lakd_ray.config import Experiment, ExternalTeacherConfig, ModelConfig
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.data.reader import ShardSource
from lakd_ray.errors import DataError
from lakd_ray.inference.batch import run_rank_inference
from lakd_ray.inference.feature_cache import get_or_compute_features

T = TypeVar("T")


@dataclass(frozen=True)
class RankCollectives:
    """The ranks of a worker group, from the view of this process."""

    rank: int
    world_size: int
    rank_wait_s: float
    """Longest wait for a rank that computes for longer than the others, in seconds."""

    @cached_property
    def _process_group(self) -> Any:
        return dist.new_group(backend="gloo", timeout=timedelta(seconds=self.rank_wait_s))

    def broadcast_from_rank0(self, decide: Callable[[], T]) -> T:
        """Call `decide` on the first rank, and return its result on all ranks."""
        results: list[T | None] = [decide() if self.rank == 0 else None]
        dist.broadcast_object_list(results, src=0, group=self._process_group)
        result: T = results[0]  # type: ignore[assignment]  # None only before the broadcast
        return result

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        dist.barrier(group=self._process_group)

    def compute_logits(
        self,
        config: Experiment,
        manifest: Manifest,
        rows: RowIndices,
        checkpoints: Mapping[str, str | ExternalTeacherConfig],
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Compute the logits of the given rows with each model.

        Returns:
            Logits of shape [len(rows), C] by model on the first rank; an empty dictionary on the others.

        Raises:
            DataError: the ranks returned a different number of utterances.
        """
        has_external = any(isinstance(checkpoint, ExternalTeacherConfig) for checkpoint in checkpoints.values())
        source = None if has_external else self.get_or_compute_features(config, manifest, config.teacher.model)
        share = run_rank_inference(config, manifest, rows, checkpoints, self.rank, self.world_size, source)
        shares: list[Any] = [None] * self.world_size
        dist.gather_object(share, shares if self.rank == 0 else None, group=self._process_group)
        if self.rank != 0:
            return {}
        indices = np.concatenate([rank_indices for rank_indices, _ in shares])
        if not np.array_equal(np.sort(indices), np.arange(len(rows))):
            raise DataError(
                f"teacher logits: expected one result for each of {len(rows)} utterances, got {len(indices)} results"
            )
        order = np.argsort(indices)
        return {name: np.concatenate([logits[name] for _, logits in shares])[order] for name in checkpoints}

    def get_or_compute_features(self, config: Experiment, manifest: Manifest, model: ModelConfig) -> ShardSource | None:
        """Run `lakd_ray.inference.feature_cache.get_or_compute_features`; each rank computes some of the shards."""
        source = get_or_compute_features(
            config,
            manifest,
            model,
            partition=lambda missing: self.broadcast_from_rank0(missing)[self.rank :: self.world_size],
        )
        self.barrier()
        return source
