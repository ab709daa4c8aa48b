"""Streams an epoch that is several times larger than the object store; prints what it took as JSON.

bounded_worker.py FOLDER
"""

import json
import resource
import sys
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


def corpus(folder: Path) -> Manifest:
    """Tones in four shards: quick to encode, and a third of a megabyte each when decoded."""
    times_T = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    tones = [encode_flac((9000 * np.sin(2000 * index * times_T)).astype(np.int16)) for index in range(1, 9)]
    each = CLIPS // SHARDS
    for shard in range(SHARDS):
        names = [f"{shard}-{row}" for row in range(each)]
        columns = {field.name: [None] * each if field.nullable else names for field in SHARD_SCHEMA}
        columns |= {
            "cut": [False] * each,
            "num_samples": [len(times_T)] * each,
            "audio": [tones[row % len(tones)] for row in range(each)],
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
        shard_N=rows // each,
        row_group_N=rows % each // ROW_GROUP,
        row_N=rows % each % ROW_GROUP,
    )


def main(folder: Path) -> None:
    manifest = corpus(folder)
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
    found = {"complete": sorted(seen) == list(range(CLIPS)), "bytes": 2 * samples, "store": STORE}
    summary = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)  # others may run here
    print(json.dumps(found | {"grown": 1024 * (after - before), "spilled": "Spilled" in summary, "summary": summary}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
