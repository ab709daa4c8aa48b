"""Cache of features, the outputs of a network's frozen frontend for each utterance, stored next to the audio.

    <prepare folder>/features/<key>/<shard>.parquet     the rows of that shard, in the same row groups

The frontend is the convolutional feature encoder or, with a frozen encoder, the encoder and the mean over frames. It
runs on each utterance alone, so the features contain no padding. The key is a hash of its weights and layout: teachers
and students of all folds that start from the same frozen encoder share its features. The features are valid for
unchanged waves only; SpecAugment masks later layers and is compatible with them.
"""

import random
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from lakd_ray import storage
from lakd_ray.audio import decode_flac, to_float
from lakd_ray.config import Experiment, ModelConfig
from lakd_ray.data.manifest import FEATURES_FOLDER, Manifest
from lakd_ray.data.reader import ShardSource
from lakd_ray.data.schema import FEATURES_SCHEMA
from lakd_ray.devices import select_device
from lakd_ray.errors import ConfigError
from lakd_ray.models import EmotionClassifier, build_model
from lakd_ray.progress import progress_bar

PartitionFn = Callable[[Callable[[], list[int]]], list[int]]


def get_or_compute_features(
    config: Experiment, manifest: Manifest, model: ModelConfig, *, partition: PartitionFn = lambda all_: all_()
) -> ShardSource | None:
    """Compute the missing features of a model's frozen frontend, and return all of them.

    Args:
        partition: selects the missing shards that this process computes.

    Returns:
        The features; None if the configuration does not cache features.
    """
    if not config.train.cache_features:
        return None
    cache = FeatureCache(config, manifest, model)
    missing = partition(cache.missing_shards)
    random.Random().shuffle(missing)  # worker groups that start at the same time then compute different shards
    with progress_bar(len(missing), "features", "shard") as bar:
        for shard in missing:
            if not cache.has_shard(shard):
                cache.compute_and_store(shard)
            bar.update()
    return cache.source


class FeatureCache:
    """The frozen frontend of a model and the folder of its features.

    Args:
        model: settings of the network; its head does not matter.

    Raises:
        ConfigError: the frontend's output is not worth caching.
    """

    def __init__(self, config: Experiment, manifest: Manifest, model: ModelConfig) -> None:
        plain = model.model_copy(update={"language_aware": None})
        self._network: EmotionClassifier = build_model(plain, config.emotions, seed=0).eval()
        if not self._network.has_cacheable_features:
            raise ConfigError(
                f"`train.cache_features` of {model.pretrained} would store its spectrograms, which are larger than the "
                "audio and quick to compute: set train.cache_features: false, or freeze_encoder: true for a plain "
                "head, which stores one vector per utterance"
            )
        self._network.to(select_device(config.train.device))
        self._manifest = manifest
        self._row_group_size = config.audio.row_group_utterances
        self.folder = storage.join(config.stage_folder("prepare"), FEATURES_FOLDER, self._network.frontend_fingerprint)

    @property
    def source(self) -> ShardSource:
        """The files of the features, as a source for `stream_batches`."""
        names = [location.rpartition("/")[2] for location in self._manifest.shards]
        files = tuple(storage.join(self.folder, name) for name in names)
        return ShardSource(files, self._network.feature_dim)

    def missing_shards(self) -> list[int]:
        """Return the indices of the shards without stored features."""
        return [index for index in range(len(self.source.files)) if not self.has_shard(index)]

    def has_shard(self, shard: int) -> bool:
        """Return whether the features of a shard are stored."""
        return storage.exists(self.source.files[shard])

    def compute_and_store(self, shard: int) -> None:
        """Compute and write the features of a shard; the write is atomic."""
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
