"""Random utterances with the lengths of IEMOCAP, their batches, and networks to train on them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from common import RATE, device, random_lengths
from lakd_ray.config import BatchConfig, ModelConfig
from lakd_ray.data.batch_plan import plan_training_epoch
from lakd_ray.data.manifest import Manifest
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import EmotionClassifier, build_model

LANGUAGES = ("en", "fi", "fr")


class Task:
    """Random utterances and the networks to train on them.

    Args:
        utterances: number of utterances.
        architecture: the transformers configuration of the networks.
        batch: utterances in a batch.
    """

    def __init__(self, utterances: int, architecture: dict[str, Any], batch: int) -> None:
        random = np.random.default_rng(0)
        lengths = random_lengths(utterances)
        self.waves = [torch.from_numpy(random.standard_normal(int(s * RATE)).astype(np.float32)) for s in lengths]
        self.labels_N = torch.from_numpy(random.integers(0, 4, utterances))
        self.languages = [LANGUAGES[index % 3] for index in range(utterances)]
        self.seconds = sum(len(wave) for wave in self.waves) / RATE
        self.batch, self.planned_batch = batch, BatchConfig(max_padded_seconds=60, max_utterances=batch)
        self._architecture = architecture
        self.manifest = _manifest(self)

    def network(self, seed: int) -> EmotionClassifier:
        """Return a network with a frozen feature encoder, as in the paper."""
        settings = ModelConfig(config=self._architecture, freeze_feature_encoder=False)
        model = build_model(settings, PAPER_EMOTIONS, seed=seed)
        model.backbone.feature_encoder.requires_grad_(False)
        return model.to(device())

    def random_batches(self) -> Iterator[list[int]]:
        """Yield random batches of a fixed number of rows."""
        order = np.random.default_rng(0).permutation(len(self.waves)).tolist()
        for start in range(0, len(order), self.batch):
            yield order[start : start + self.batch]

    def planned_batches(self, batch: BatchConfig | None = None) -> Iterator[list[int]]:
        """Yield this project's batches of similar lengths."""
        rows = np.arange(len(self.waves))
        plan = plan_training_epoch(self.manifest, rows, batch or self.planned_batch, seed=0, epoch=0, world_size=1)
        for planned in plan.batches(0):
            yield planned.tolist()


def _manifest(task: Task) -> Manifest:
    count = len(task.waves)
    names = [f"u{index}" for index in range(count)]
    return Manifest(
        table=pa.table({"utterance": names, "speaker": names, "audio_sha256": names}),
        labels_N=task.labels_N.numpy(),
        splits_N=np.array(["train"] * count),
        languages_N=np.array(task.languages, dtype=object),
        num_samples_N=np.array([len(wave) for wave in task.waves]),
        shards=("none",),
        shard_N=np.zeros(count, dtype=np.int64),
        row_group_N=np.arange(count) // 16,
        row_N=np.arange(count) % 16,
    )
