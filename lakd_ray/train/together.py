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

from lakd_ray.config import Brought, Experiment, Model
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.data.stream import Source
from lakd_ray.errors import DataError
from lakd_ray.infer.batch import logits_here
from lakd_ray.infer.features import cached

# Shares differ in length, and Ray Train ends the group when a rank is lost: waiting itself needs no other limit.
_PATIENCE = timedelta(days=7)

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process's place among the ranks."""

    rank: int
    world: int

    @cached_property
    def _waiting(self) -> Any:
        return dist.new_group(backend="gloo", timeout=_PATIENCE)

    def agreed(self, decide: Callable[[], T]) -> T:
        """What the first rank decides, on all ranks."""
        box: list[T | None] = [decide() if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, group=self._waiting)
        decided: T = box[0]  # type: ignore[assignment]  # the first rank's
        return decided

    def wait(self) -> None:
        """Until every rank has come here."""
        dist.barrier(group=self._waiting)

    def logits(
        self, config: Experiment, manifest: Manifest, rows: Rows, checkpoints: Mapping[str, str | Brought]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Logits of some rows by each model, shape [len(rows), C], on the first rank; nothing elsewhere."""
        own = not any(isinstance(place, Brought) for place in checkpoints.values())
        source = self.features(config, manifest, config.teacher.model) if own else None
        share = logits_here(config, manifest, rows, checkpoints, self.rank, self.world, source)
        shares: list[Any] = [None] * self.world
        dist.gather_object(share, shares if self.rank == 0 else None, group=self._waiting)
        if self.rank != 0:
            return {}
        places = np.concatenate([each[0] for each in shares])
        if not np.array_equal(np.sort(places), np.arange(len(rows))):
            raise DataError(f"teacher logits: {len(rows)} utterances were asked for, {len(places)} came back")
        found = {name: np.concatenate([each[1][name] for each in shares]) for name in checkpoints}
        return {name: logits_RC[np.argsort(places)] for name, logits_RC in found.items()}

    def features(self, config: Experiment, manifest: Manifest, model: Model) -> Source | None:
        """As `lakd_ray.infer.features.cached`, each rank computing some of the shards."""
        source = cached(config, manifest, model, share=lambda missing: self.agreed(missing)[self.rank :: self.world])
        self.wait()
        return source
