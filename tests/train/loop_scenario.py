"""A run on real shards, uninterrupted and killed at several steps, for one rank of `engine_worker`.

Windows are read here in the process itself; that Ray Data yields the same is what tests/data asserts.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch.distributed as dist
from safetensors.torch import load_file

from lakd_ray import storage
from lakd_ray.audio import encode_flac
from lakd_ray.config import Experiment
from lakd_ray.data import stream as streams
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.plan import Window
from lakd_ray.data.stream import AudioBatch
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.runs import teacher_runs
from lakd_ray.schema import SHARD
from lakd_ray.train import feed as feeds
from lakd_ray.train import loop
from lakd_ray.train.engine import Engine
from lakd_ray.train.feed import Feed
from lakd_ray.train.state import State

TRAIN, DEV, EPOCHS = 30, 8, 2
KILLS = ((None, 3), (None, 9), (2, 4), (2, 7))
"""(checkpoint_steps, steps after which the run is killed)."""


class Killed(Exception):  # noqa: N818 -- not an error of the code under test
    """Stands for the end of the process: nothing that was in memory is used again."""


def run(folder: Path, rank: int, world: int) -> dict[Any, Any]:
    """Rows trained on, last state and weights: of the run that nothing interrupts (`whole`), and of each of `KILLS`."""
    manifest = _manifest(folder, rank)
    results: dict[Any, Any] = {"whole": _end(folder / "whole", _train(manifest, folder / "whole", rank, world))}
    for every, steps in KILLS:
        place = folder / f"killed-{every}-{steps}"
        before = _train(manifest, place, rank, world, kill_after=steps, checkpoint_steps=every)
        reached = State.read(str(place))
        dist.barrier()
        after = _train(manifest, place, rank, world, checkpoint_steps=every)
        results[every, steps] = _end(place, after) | {"before": before, "reached": reached}
    return results


def _manifest(folder: Path, rank: int) -> Manifest:
    """Noise of different lengths in one shard."""
    random = np.random.default_rng(0)
    count = TRAIN + DEV
    lengths = random.integers(4_000, 9_000, count)
    clips = [(3000 * random.standard_normal(length)).clip(-32768, 32767).astype(np.int16) for length in lengths]
    labels_N = np.arange(count) % len(PAPER_EMOTIONS)
    texts = {name: [f"{name}-{row}" for row in range(count)] for name in ("utterance", "speaker", "source")}
    columns: dict[str, Any] = {
        **texts,
        "corpus": ["c"] * count,
        "language": ["en"] * count,
        "emotion": [PAPER_EMOTIONS[label] for label in labels_N],
        "num_samples": lengths,
        "audio_sha256": texts["utterance"],
        "audio": [encode_flac(clip) for clip in clips],
    }
    columns = {name: columns.get(name, [None] * count) for name in SHARD.names}
    if rank == 0:
        storage.write_table(str(folder / "shard.parquet"), pa.table(columns, schema=SHARD), row_group_size=4)
    dist.barrier()
    return Manifest(
        table=pa.table(columns, schema=SHARD),
        labels_N=labels_N,
        splits_N=np.array(["train"] * TRAIN + ["dev"] * DEV),
        languages_N=np.array(["en"] * count, dtype=object),
        samples_N=lengths,
        shards=(str(folder / "shard.parquet"),),
        shard_N=np.zeros(count, dtype=np.int64),
        row_group_N=np.arange(count) // 4,
        row_N=np.arange(count) % 4,
    )


def _experiment(folder: Path, **train: Any) -> Experiment:
    model = {"architecture": tiny.ARCHITECTURE | {"mask_time_length": 2}, "freeze_feature_encoder": False}
    recipe = {"model": model, "optim": {"epochs": EPOCHS, "lr": 0.003}}
    content = {"name": "t", "storage": str(folder), "languages": ["en"], "teacher": recipe, "student": recipe}
    batch = {"padded_seconds": 2, "max_utterances": 2, "window_row_groups": 2}
    corpora = [{"name": "c", "root": str(folder)}]
    return Experiment.model_validate(content | {"corpora": corpora, "batch": batch, "train": {"workers": 2, **train}})


def _train(
    manifest: Manifest, place: Path, rank: int, world: int, *, kill_after: int | None = None, **settings: Any
) -> list[int]:
    """Train the run in a folder to its end, or until it is killed; returns the rows trained on, in order."""
    config = _experiment(place, **settings)
    feed = Feed(teacher_runs(config)[0], config, manifest, None, rank, world)
    arrived: list[AudioBatch] = []
    rows: list[int] = []
    step, tensors = Engine.step, Feed.tensors

    def remembering(self: Feed, batch: AudioBatch) -> Any:
        arrived.append(batch)
        return tensors(self, batch)

    def counting(self: Engine) -> None:
        trained = [batch for batch in arrived if batch.split == "train"]
        if kill_after is not None and len(trained) > kill_after:
            raise Killed
        rows.extend(trained[-1].rows.tolist())
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "stream", _read_here)
        patch.setattr(Feed, "tensors", remembering)
        patch.setattr(Engine, "step", counting)
        try:
            loop.train(feed, str(place), {"made": "by a test"}, [], lambda _: None)
        except Killed:
            dist.barrier()
    return rows


def _read_here(manifest: Manifest, windows: Iterable[Window]) -> Iterator[AudioBatch]:
    for window in windows:
        tables = streams._read_window(streams._request(manifest, window), manifest.shards)
        for rows, table in zip(window.batches, tables, strict=True):
            yield AudioBatch(window.epoch, window.split, rows, streams.unpack(table))


def _end(place: Path, rows: list[int]) -> dict[str, Any]:
    dist.barrier()
    state = State.read(str(place))
    weights = load_file(place / str(state.best) / "model.safetensors")
    return {"rows": rows, "state": state, "weights": weights, "left": sorted(path.name for path in place.iterdir())}
