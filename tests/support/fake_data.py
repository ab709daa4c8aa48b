"""Write noise to a real shard and build its manifest, for tests that need neither speech nor Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lakd_ray import storage
from lakd_ray.audio import encode_flac
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.schema import SHARD_SCHEMA
from lakd_ray.labels import PAPER_EMOTIONS

ROW_GROUP = 4


def write(folder: Path, count: int) -> None:
    """Write a shard of clips between a quarter and half a second."""
    random = np.random.default_rng(0)
    clips = [(3000 * random.standard_normal(length)).astype(np.int16) for length in _lengths(count)]
    columns = _columns(count) | {"audio": [encode_flac(clip) for clip in clips]}
    table = pa.table({name: columns.get(name, [None] * count) for name in SHARD_SCHEMA.names}, schema=SHARD_SCHEMA)
    storage.write_table(str(folder / "shard.parquet"), table, row_group_size=ROW_GROUP)


def manifest(folder: Path, train: int, dev: int) -> Manifest:
    """Return the manifest, with the first rows in train and the rest in dev."""
    count = train + dev
    return Manifest(
        table=pa.table(_columns(count)),
        labels_N=np.arange(count) % len(PAPER_EMOTIONS),
        splits_N=np.array(["train"] * train + ["dev"] * dev),
        languages_N=np.array(["en"] * count, dtype=object),
        num_samples_N=_lengths(count),
        shards=(str(folder / "shard.parquet"),),
        shard_N=np.zeros(count, dtype=np.int64),
        row_group_N=np.arange(count) // ROW_GROUP,
        row_N=np.arange(count) % ROW_GROUP,
    )


def _lengths(count: int) -> Any:
    return np.random.default_rng(1).integers(4_000, 9_000, count)


def _columns(count: int) -> dict[str, Any]:
    names = {name: [f"{name}-{row}" for row in range(count)] for name in ("utterance", "speaker", "source")}
    return {
        **names,
        "corpus": ["c"] * count,
        "language": ["en"] * count,
        "emotion": [PAPER_EMOTIONS[row % len(PAPER_EMOTIONS)] for row in range(count)],
        "num_samples": _lengths(count),
        "audio_sha256": names["utterance"],
        "recording": names["utterance"],
        "cut": [False] * count,
    }
