"""Train runs on real shards, uninterrupted and killed at several steps, for one rank of `engine_worker`.

Batches are read in the process itself; tests/data checks that Ray Data yields the same batches.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
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
from lakd_ray.launch import rank_collectives
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.runs.state import RunState
from lakd_ray.train import data_loader as feeds
from lakd_ray.train import trainer
from lakd_ray.train.data_loader import RankDataLoader
from lakd_ray.train.engines.base import Engine
from support import fake_data as noise
from support import tiny_models as tiny
from support.engine_results import KilledRun, TrainedRun, TrainerResults

TRAIN, DEV, EPOCHS = 30, 8, 2
KILLS = ((None, 9), (2, 4))
"""(checkpoint_steps, steps after which the run is killed)."""


class Killed(Exception):  # noqa: N818 -- not an error of the code under test
    """Stand for the end of the process: nothing in memory is used again."""


def run(folder: Path, rank: int, world_size: int) -> TrainerResults:
    """Train an uninterrupted run, each run of `KILLS`, and the same run from waves and from cached features."""
    if rank == 0:
        noise.write(folder, TRAIN + DEV)
    dist.barrier()
    manifest = noise.manifest(folder, TRAIN, DEV)
    rows = _train(manifest, folder / "uninterrupted", rank, world_size)
    uninterrupted = _collect(folder / "uninterrupted", rows)
    killed: dict[tuple[int | None, int], KilledRun] = {}
    for save_interval, steps in KILLS:
        run_folder = folder / f"killed-{save_interval}-{steps}"
        rows_before = _train(manifest, run_folder, rank, world_size, kill_after=steps, checkpoint_steps=save_interval)
        saved_state = RunState.read(str(run_folder))
        dist.barrier()
        rows = _train(manifest, run_folder, rank, world_size, checkpoint_steps=save_interval)
        killed[save_interval, steps] = KilledRun(rows_before, saved_state, _collect(run_folder, rows))
    if rank == 0:
        tiny.checkpoint(folder, **tiny.DETERMINISTIC)
    dist.barrier()
    model = {"model": {"pretrained": str(folder / "tiny")}}
    rows = _train(manifest, folder / "waves", rank, world_size, model, cache_features=False)
    from_waves = _collect(folder / "waves", rows)
    rows = _train(manifest, folder / "features", rank, world_size, model, cache_features=True)
    return TrainerResults(uninterrupted, killed, from_waves, _collect(folder / "features", rows))


def kill_with_two_ranks(folder: Path, rank: int) -> None:
    """Train with two ranks until the run is killed in its second epoch."""
    manifest = noise.manifest(folder, TRAIN, DEV)
    _train(manifest, folder / "fewer-ranks", rank, 2, kill_after=11, checkpoint_steps=2)


def resume_with_one_rank(folder: Path) -> TrainedRun:
    """Finish the run of `kill_with_two_ranks` with one rank."""
    messages: list[str] = []
    rows = _train(noise.manifest(folder, TRAIN, DEV), folder / "fewer-ranks", 0, 1, messages=messages)
    return replace(_collect(folder / "fewer-ranks", rows), messages=messages)


MODEL = {"config": tiny.ARCHITECTURE | {"mask_time_length": 2}, "freeze_feature_encoder": False}


def _experiment(folder: Path, model: dict[str, Any], **train: Any) -> Experiment:
    recipe = {"optim": {"epochs": EPOCHS, "lr": 0.003}, **model}
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
    folder: Path,
    rank: int,
    world_size: int,
    model: dict[str, Any] | None = None,
    *,
    kill_after: int | None = None,
    messages: list[str] | None = None,
    **settings: Any,
) -> list[int]:
    """Train the run in a folder to its end, or until it is killed; return the rows trained on, in order."""
    config = _experiment(folder, model or {"model": MODEL}, **settings)
    group = rank_collectives.RankCollectives(rank, world_size, 300.0)
    teacher = build_run_graph(config).teachers[0]
    source = group.get_or_compute_features(config, manifest, teacher.recipe.model)
    loader = RankDataLoader(teacher, config, manifest, None, rank, world_size, source)
    collated: list[AudioBatch] = []
    rows: list[int] = []
    step, collate = Engine.step, RankDataLoader.collate

    def recording_collate(self: RankDataLoader, batch: AudioBatch, **kwargs: Any) -> Any:
        collated.append(batch)
        return collate(self, batch, **kwargs)

    def counting_step(self: Engine) -> None:
        trained = [batch for batch in collated if batch.split == "train"]
        if kill_after is not None and len(trained) > kill_after:
            raise Killed
        rows.extend(trained[-1].rows.tolist())
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "stream_batches", read_in_process)
        patch.setattr(RankDataLoader, "collate", recording_collate)
        patch.setattr(Engine, "step", counting_step)
        try:
            log = print if messages is None else messages.append
            trainer.train_run(loader, str(folder), {"made": "by a test"}, [], lambda _: None, log=log)
        except Killed:
            dist.barrier()
    return rows


def read_in_process(
    manifest: Manifest, read_groups: Iterable[ReadGroup], *, source: ShardSource | None, **_: Any
) -> Iterator[AudioBatch]:
    """Yield the same batches as `stream_batches`, without Ray."""
    source = source or ShardSource(manifest.shards)
    for group in read_groups:
        tables = streams.read_batches(streams.make_read_request(manifest, group), source)
        for rows, table in zip(group.batches, tables, strict=True):
            yield AudioBatch(group.epoch, group.split, rows, streams.unpack_signals(table, source))


def _collect(folder: Path, rows: list[int]) -> TrainedRun:
    dist.barrier()
    state = RunState.read(str(folder))
    weights = load_file(folder / str(state.best_checkpoint_name) / "model.safetensors")
    return TrainedRun(rows, state, weights, sorted(path.name for path in folder.iterdir()))
