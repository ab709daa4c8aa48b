"""Cached features: what the frozen part of a network makes of each utterance, computed once, stored beside the audio.

    <prepare folder>/features/<key>/<shard>.parquet     the rows of that shard, in the same row groups

That part is the convolutional feature encoder or, of a network whose whole encoder is frozen, the encoder and the mean
over frames. It sees each utterance alone, so no padding is in what is stored. The key is a hash of its weights and
layout: models that start from the same frozen encoder share its features, teachers and students alike, whatever
the fold. Valid for unchanged waves only; SpecAugment masks what comes after and goes together with them.
"""

import random
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from lakd_ray import storage
from lakd_ray.audio import decode_flac, to_float
from lakd_ray.config import Experiment, ModelConfig
from lakd_ray.data.manifest import FEATURES_FOLDER, Manifest
from lakd_ray.data.reader import ShardSource
from lakd_ray.data.schema import FEATURES_SCHEMA
from lakd_ray.errors import ConfigError
from lakd_ray.models import EmotionClassifier, build_model

PartitionFn = Callable[[Callable[[], list[int]]], list[int]]


def get_or_compute_features(
    config: Experiment, manifest: Manifest, model: ModelConfig, *, partition: PartitionFn = lambda all_: all_()
) -> ShardSource | None:
    """The features of a model's frozen encoder, those that are missing computed first; None if none are to be used.

    Args:
        share: chooses those of the missing shards that are computed here.
    """
    if not config.train.cache_features:
        return None
    encoder = FeatureCache(config, manifest, model)
    missing = partition(encoder.missing_shards)
    random.Random().shuffle(missing)  # groups that begin at the same time meet half-way
    for shard in tqdm(missing, desc="features", unit="shard", mininterval=2):
        if not encoder.has_shard(shard):
            encoder.compute_and_store(shard)
    return encoder.source


class FeatureCache:
    """The frozen part of a model, and where its features lie.

    Args:
        model: the network; its head does not matter.

    Raises:
        ConfigError: what its frozen part makes is not worth keeping.
    """

    def __init__(self, config: Experiment, manifest: Manifest, model: ModelConfig) -> None:
        plain = model.model_copy(update={"language_aware": None})
        self._network: EmotionClassifier = build_model(plain, config.emotions, seed=0).eval()
        if not self._network.has_cacheable_features:
            raise ConfigError(
                f"`train.cache_features` of {model.pretrained} would keep its spectrograms, which are larger than the "
                "audio and quick to make: set train.cache_features: false, or freeze_encoder: true for a plain head, "
                "which keeps one vector an utterance"
            )
        if torch.cuda.is_available():
            self._network.to("cuda")
        self._manifest = manifest
        self._row_group_size = config.audio.row_group_utterances
        self.folder = storage.join(config.stage_folder("prepare"), FEATURES_FOLDER, self._network.frontend_fingerprint)

    @property
    def source(self) -> ShardSource:
        """The features as a source to stream from."""
        names = [location.rpartition("/")[2] for location in self._manifest.shards]
        channels = self._network.feature_dim
        return ShardSource(tuple(storage.join(self.folder, name) for name in names), channels)

    def missing_shards(self) -> list[int]:
        """Numbers of the shards whose features are not stored yet."""
        return [index for index in range(len(self.source.files)) if not self.has_shard(index)]

    def has_shard(self, shard: int) -> bool:
        """Whether a shard's features are stored."""
        return storage.exists(self.source.files[shard])

    def compute_and_store(self, shard: int) -> None:
        """Compute and write the features of a shard, whole or not at all."""
        table = storage.read_table(self._manifest.shards[shard], columns=["utterance", "audio"])
        features = [self._compute_features(content) for content in table["audio"].to_pylist()]
        columns = {"utterance": table["utterance"], "features": pa.array(features, type=pa.binary())}
        storage.write_table(
            self.source.files[shard], pa.table(columns, schema=FEATURES_SCHEMA), row_group_size=self._row_group_size
        )

    @torch.inference_mode()
    def _compute_features(self, content: bytes) -> bytes:
        device = next(self._network.parameters()).device
        wave_1T = torch.from_numpy(to_float(decode_flac(content))).unsqueeze(0).to(device)
        features_1FH = self._network.extract_features(wave_1T, torch.tensor([wave_1T.shape[1]], device=device))
        return np.ascontiguousarray(features_1FH[0].float().cpu().numpy().astype("<f2")).tobytes()
