"""Stream an epoch that is several times larger than the object store, and print a `StreamReport` as JSON.

bounded_worker.py FOLDER
"""

import json
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from ray._private.internal_api import memory_summary

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, encode_flac
from lakd_ray.config import BatchConfig
from lakd_ray.data.batch_plan import plan_training_epoch
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.reader import stream_batches
from lakd_ray.data.schema import SHARD_SCHEMA

STORE = 100_000_000
SECONDS, CLIPS, ROW_GROUP, SHARDS = 10, 1_600, 32, 4


@dataclass(frozen=True)
class StreamReport:
    """The results of streaming an epoch."""

    complete: bool
    """Whether every clip arrived once."""
    streamed_bytes: int
    object_store_bytes: int
    growth_bytes: int
    """Growth of the peak memory of the process."""
    spilled: bool
    memory_summary: str
    """Ray's own summary of the object store."""


def write_corpus(folder: Path) -> Manifest:
    """Write tones to four shards: quick to encode, and a third of a megabyte each when decoded."""
    times_T = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    tones = [encode_flac((9000 * np.sin(2000 * index * times_T)).astype(np.int16)) for index in range(1, 9)]
    per_shard = CLIPS // SHARDS
    for shard in range(SHARDS):
        names = [f"{shard}-{row}" for row in range(per_shard)]
        columns = {field.name: [None] * per_shard if field.nullable else names for field in SHARD_SCHEMA}
        columns |= {
            "cut": [False] * per_shard,
            "num_samples": [len(times_T)] * per_shard,
            "audio": [tones[row % len(tones)] for row in range(per_shard)],
        }
        table = pa.table(columns, schema=SHARD_SCHEMA)
        storage.write_table(str(folder / f"{shard}.parquet"), table, row_group_size=ROW_GROUP)
    rows = np.arange(CLIPS)
    return Manifest(
        table=pa.table({}),
        labels_N=rows % 4,
        splits_N=np.full(CLIPS, "train"),
        languages_N=np.full(CLIPS, "en", dtype=object),
        num_samples_N=np.full(CLIPS, len(times_T)),
        shards=tuple(str(folder / f"{shard}.parquet") for shard in range(SHARDS)),
        shard_N=rows // per_shard,
        row_group_N=rows % per_shard // ROW_GROUP,
        row_N=rows % per_shard % ROW_GROUP,
    )


def main(folder: Path) -> None:
    manifest = write_corpus(folder)
    ray.init(address="local", num_cpus=4, object_store_memory=STORE, include_dashboard=False, log_to_driver=False)
    epoch = plan_training_epoch(
        manifest, np.arange(CLIPS), BatchConfig(max_padded_seconds=80), seed=0, epoch=0, world_size=1
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen: list[int] = []
    samples = 0
    for batch in stream_batches(manifest, epoch.read_groups[0], num_cpus=2):
        seen += batch.rows.tolist()
        samples += sum(map(len, batch.signals))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)  # not that of another session
    report = StreamReport(
        complete=sorted(seen) == list(range(CLIPS)),
        streamed_bytes=2 * samples,
        object_store_bytes=STORE,
        growth_bytes=1024 * (after - before),
        spilled="Spilled" in summary,
        memory_summary=summary,
    )
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
