"""What the ranks of a worker group do together before a run: agree, compute teacher logits, cache features.

Each rank takes a share on its own device, so that nothing waits for resources that the group itself holds. All ranks
must call these functions, in the same order. No Ray.
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

# Shares differ in length, and Ray Train ends the group when a rank is lost: waiting itself needs no other limit.
_TIMEOUT = timedelta(days=7)

T = TypeVar("T")


@dataclass(frozen=True)
class RankGroup:
    """This process's place among the ranks."""

    rank: int
    world_size: int

    @cached_property
    def _process_group(self) -> Any:
        return dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def broadcast_from_rank0(self, decide: Callable[[], T]) -> T:
        """What the first rank decides, on all ranks."""
        box: list[T | None] = [decide() if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, group=self._process_group)
        decided: T = box[0]  # type: ignore[assignment]  # the first rank's
        return decided

    def barrier(self) -> None:
        """Until every rank has come here."""
        dist.barrier(group=self._process_group)

    def compute_logits(
        self,
        config: Experiment,
        manifest: Manifest,
        rows: RowIndices,
        checkpoints: Mapping[str, str | ExternalTeacherConfig],
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Logits of some rows by each model, shape [len(rows), C], on the first rank; nothing elsewhere."""
        own = not any(isinstance(place, ExternalTeacherConfig) for place in checkpoints.values())
        source = self.get_or_compute_features(config, manifest, config.teacher.model) if own else None
        share = run_rank_inference(config, manifest, rows, checkpoints, self.rank, self.world_size, source)
        shares: list[Any] = [None] * self.world_size
        dist.gather_object(share, shares if self.rank == 0 else None, group=self._process_group)
        if self.rank != 0:
            return {}
        places = np.concatenate([each[0] for each in shares])
        if not np.array_equal(np.sort(places), np.arange(len(rows))):
            raise DataError(f"teacher logits: {len(rows)} utterances were asked for, {len(places)} came back")
        found = {name: np.concatenate([each[1][name] for each in shares]) for name in checkpoints}
        return {name: logits_RC[np.argsort(places)] for name, logits_RC in found.items()}

    def get_or_compute_features(self, config: Experiment, manifest: Manifest, model: ModelConfig) -> ShardSource | None:
        """As `lakd_ray.inference.feature_cache.cached`, each rank computing some of the shards."""
        source = get_or_compute_features(
            config,
            manifest,
            model,
            partition=lambda missing: self.broadcast_from_rank0(missing)[self.rank :: self.world_size],
        )
        self.barrier()
        return source
