"""Share of padding in planned batches, compared with random batches of 16, for lengths like those of IEMOCAP.

    python benchmarks/padding.py

Utterance lengths are log-normal with mean 4.5 s, cut at 20 s, similar to IEMOCAP. The output is the share of padding
over ten random corpora, as median and range. The benchmark needs neither Ray nor audio.
"""

from statistics import median

import numpy as np
import pyarrow as pa

from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import BatchConfig
from lakd_ray.data.batch_plan import padded_and_unpadded_seconds, plan_training_epoch
from lakd_ray.data.manifest import Manifest

UTTERANCES = 5_000
ROW_GROUP = 64


def corpus(random: np.random.Generator) -> Manifest:
    """Return a manifest of utterances of random lengths in one shard, with only the columns that planning reads."""
    seconds_N = np.minimum(random.lognormal(np.log(4.5) - 0.7**2 / 2, 0.7, UTTERANCES), 20.0)
    index_N = np.arange(UTTERANCES)
    return Manifest(
        table=pa.table({}),
        labels_N=np.zeros(UTTERANCES, dtype=np.int64),
        splits_N=np.full(UTTERANCES, "train"),
        languages_N=np.full(UTTERANCES, "en", dtype=object),
        num_samples_N=np.maximum((seconds_N * SAMPLE_RATE).astype(np.int64), SAMPLE_RATE // 10),
        shards=("shard",),
        shard_N=np.zeros(UTTERANCES, dtype=np.int64),
        row_group_N=index_N // ROW_GROUP,
        row_N=index_N % ROW_GROUP,
    )


def waste(manifest: Manifest, batches: list[np.ndarray]) -> float:
    """Return the share of the batches' audio that is padding."""
    padded, audio = padded_and_unpadded_seconds(manifest, batches)
    return 1 - audio / padded


def main() -> None:
    """Measure both kinds of batches and print the shares."""
    planned, random_16 = [], []
    for seed in range(10):
        random = np.random.default_rng(seed)
        manifest = corpus(random)
        rows = np.arange(UTTERANCES)
        epoch = plan_training_epoch(manifest, rows, BatchConfig(), seed=seed, epoch=0, world_size=1)
        planned.append(waste(manifest, list(epoch.batches(0))))
        shuffled = random.permutation(rows)
        random_16.append(waste(manifest, [shuffled[start : start + 16] for start in range(0, UTTERANCES, 16)]))
    for name, values in (("planned batches", planned), ("random batches of 16", random_16)):
        print(f"{name:<22} {median(values):6.1%} of the audio is padding ({min(values):.1%} to {max(values):.1%})")


if __name__ == "__main__":
    main()
