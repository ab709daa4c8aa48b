"""A run on real shards, uninterrupted and killed at several steps, for one rank of `engine_worker`.

Windows are read here in the process itself; that Ray Data yields the same is what tests/data asserts.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from lakd_ray.config import Experiment
from lakd_ray.data import reader as streams
from lakd_ray.data.batch_plan import ReadGroup
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.reader import AudioBatch, ShardSource
from lakd_ray.launch import rank_group
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.runs.state import RunState
from lakd_ray.train import data_loader as feeds
from lakd_ray.train import trainer
from lakd_ray.train.data_loader import RankDataLoader
from lakd_ray.train.engines.base import Engine
from support import fake_data as noise
from support import tiny_models as tiny

TRAIN, DEV, EPOCHS = 30, 8, 2
KILLS = ((None, 9), (2, 4))
"""(checkpoint_steps, steps after which the run is killed)."""


class Killed(Exception):  # noqa: N818 -- not an error of the code under test
    """Stands for the end of the process: nothing that was in memory is used again."""


def run(folder: Path, rank: int, world: int) -> dict[Any, Any]:
    """Rows trained on, last state and weights: of the run that nothing interrupts (`whole`), and of each of `KILLS`."""
    if rank == 0:
        noise.write(folder, TRAIN + DEV)
    dist.barrier()
    manifest = noise.manifest(folder, TRAIN, DEV)
    results: dict[Any, Any] = {"whole": _end(folder / "whole", _train(manifest, folder / "whole", rank, world))}
    for every, steps in KILLS:
        place = folder / f"killed-{every}-{steps}"
        before = _train(manifest, place, rank, world, kill_after=steps, checkpoint_steps=every)
        reached = RunState.read(str(place))
        dist.barrier()
        after = _train(manifest, place, rank, world, checkpoint_steps=every)
        results[every, steps] = _end(place, after) | {"before": before, "reached": reached}
    if rank == 0:
        tiny.checkpoint(folder, **tiny.STILL)
    dist.barrier()
    start = {"model": {"pretrained": str(folder / "tiny")}}
    for name, use in (("from waves", False), ("from features", True)):
        rows = _train(manifest, folder / name, rank, world, start, cache_features=use)
        results[name] = _end(folder / name, rows)
    return results


def leave_for_one(folder: Path, rank: int, world: int) -> None:
    """A run that two ranks have begun and that is killed in its second epoch."""
    manifest = noise.manifest(folder, TRAIN, DEV)
    _train(manifest, folder / "fewer", rank, world, kill_after=11, checkpoint_steps=2)


def go_on_alone(folder: Path) -> dict[str, Any]:
    """One rank finishes it."""
    told: list[str] = []
    rows = _train(noise.manifest(folder, TRAIN, DEV), folder / "fewer", 0, 1, told=told)
    return _end(folder / "fewer", rows) | {"told": told}


MODEL = {"config": tiny.ARCHITECTURE | {"mask_time_length": 2}, "freeze_feature_encoder": False}


def _experiment(folder: Path, start: dict[str, Any], **train: Any) -> Experiment:
    recipe = {"optim": {"epochs": EPOCHS, "lr": 0.003}, **start}
    content = {"name": "t", "storage": str(folder), "languages": ["en"], "teacher": recipe, "student": recipe}
    batch = {"max_padded_seconds": 2, "max_utterances": 2, "shuffle_row_groups": 2}
    corpora = [{"name": "c", "root": str(folder)}]
    return Experiment.model_validate(
        content
        | {
            "audio": {"row_group_utterances": noise.ROW_GROUP},
            "corpora": corpora,
            "batch": batch,
            "train": {"workers": 2, **train},
        }
    )


def _train(
    manifest: Manifest,
    place: Path,
    rank: int,
    world: int,
    start: dict[str, Any] | None = None,
    *,
    kill_after: int | None = None,
    told: list[str] | None = None,
    **settings: Any,
) -> list[int]:
    """Train the run in a folder to its end, or until it is killed; returns the rows trained on, in order."""
    config = _experiment(place, start or {"model": MODEL}, **settings)
    group = rank_group.RankGroup(rank, world)
    run_of = build_run_graph(config).teachers[0]
    source = group.get_or_compute_features(config, manifest, run_of.recipe.model)
    feed = RankDataLoader(run_of, config, manifest, None, rank, world, source)
    arrived: list[AudioBatch] = []
    rows: list[int] = []
    step, collate = Engine.step, RankDataLoader.collate

    def remembering(self: RankDataLoader, batch: AudioBatch) -> Any:
        arrived.append(batch)
        return collate(self, batch)

    def counting(self: Engine) -> None:
        trained = [batch for batch in arrived if batch.split == "train"]
        if kill_after is not None and len(trained) > kill_after:
            raise Killed
        rows.extend(trained[-1].rows.tolist())
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "stream_batches", _read_here)
        patch.setattr(RankDataLoader, "collate", remembering)
        patch.setattr(Engine, "step", counting)
        try:
            tell = print if told is None else told.append
            trainer.train_run(feed, str(place), {"made": "by a test"}, [], lambda _: None, log=tell)
        except Killed:
            dist.barrier()
    return rows


def _read_here(
    manifest: Manifest, windows: Iterable[ReadGroup], *, source: ShardSource | None, **_: Any
) -> Iterator[AudioBatch]:
    source = source or ShardSource(manifest.shards)
    for window in windows:
        tables = streams.read_batches(streams.make_read_request(manifest, window), source)
        for rows, table in zip(window.batches, tables, strict=True):
            yield AudioBatch(window.epoch, window.split, rows, streams.unpack_signals(table, source))


def _end(place: Path, rows: list[int]) -> dict[str, Any]:
    dist.barrier()
    state = RunState.read(str(place))
    weights = load_file(place / str(state.best_checkpoint_name) / "model.safetensors")
    return {"rows": rows, "state": state, "weights": weights, "left": sorted(path.name for path in place.iterdir())}
