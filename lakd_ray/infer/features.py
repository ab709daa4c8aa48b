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
from lakd_ray.config import Experiment, Model
from lakd_ray.data.manifest import FEATURES, Manifest
from lakd_ray.data.stream import Source
from lakd_ray.errors import ConfigError
from lakd_ray.models import EmotionClassifier, build
from lakd_ray.schema import FEATURES as COLUMNS

Share = Callable[[Callable[[], list[int]]], list[int]]


def cached(
    config: Experiment, manifest: Manifest, model: Model, *, share: Share = lambda all_: all_()
) -> Source | None:
    """The features of a model's frozen encoder, those that are missing computed first; None if none are to be used.

    Args:
        share: chooses those of the missing shards that are computed here.
    """
    if not config.train.cached_features:
        return None
    encoder = Encoder(config, manifest, model)
    missing = share(encoder.missing)
    random.Random().shuffle(missing)  # groups that begin at the same time meet half-way
    for shard in tqdm(missing, desc="features", unit="shard", mininterval=2):
        if not encoder.has(shard):
            encoder.store(shard)
    return encoder.source


class Encoder:
    """The frozen part of a model, and where its features lie.

    Args:
        model: the network; its head does not matter.

    Raises:
        ConfigError: what its frozen part makes is not worth keeping.
    """

    def __init__(self, config: Experiment, manifest: Manifest, model: Model) -> None:
        plain = model.model_copy(update={"language_aware": None})
        self._network: EmotionClassifier = build(plain, config.emotions, seed=0).eval()
        if not self._network.worth_keeping:
            raise ConfigError(
                f"`train.cached_features` of {model.pretrained} would keep its spectrograms, which are larger than the "
                "audio and quick to make: set train.cached_features: false, or freeze_encoder: true for a plain head, "
                "which keeps one vector an utterance"
            )
        if torch.cuda.is_available():
            self._network.to("cuda")
        self._manifest = manifest
        self._row_group = config.audio.row_group_utterances
        self.folder = storage.join(config.stage_folder("prepare"), FEATURES, self._network.first_step_key)

    @property
    def source(self) -> Source:
        """The features as a source to stream from."""
        names = [location.rpartition("/")[2] for location in self._manifest.shards]
        channels = self._network.channels
        return Source(tuple(storage.join(self.folder, name) for name in names), channels)

    def missing(self) -> list[int]:
        """Numbers of the shards whose features are not stored yet."""
        return [index for index in range(len(self.source.files)) if not self.has(index)]

    def has(self, shard: int) -> bool:
        """Whether a shard's features are stored."""
        return storage.exists(self.source.files[shard])

    def store(self, shard: int) -> None:
        """Compute and write the features of a shard, whole or not at all."""
        table = storage.read_table(self._manifest.shards[shard], columns=["utterance", "audio"])
        features = [self._features(content) for content in table["audio"].to_pylist()]
        columns = {"utterance": table["utterance"], "features": pa.array(features, type=pa.binary())}
        storage.write_table(self.source.files[shard], pa.table(columns, schema=COLUMNS), row_group_size=self._row_group)

    @torch.inference_mode()
    def _features(self, content: bytes) -> bytes:
        device = next(self._network.parameters()).device
        wave_1T = torch.from_numpy(to_float(decode_flac(content))).unsqueeze(0).to(device)
        features_1FH = self._network.features(wave_1T, torch.tensor([wave_1T.shape[1]], device=device))
        return np.ascontiguousarray(features_1FH[0].float().cpu().numpy().astype("<f2")).tobytes()
