"""Each worker reads its data with the CPUs that the configuration gives it."""

from collections.abc import Iterator
from typing import Any

import pytest
from support import fake_data as noise

from lakd_ray.config import Experiment
from lakd_ray.inference import batch as inference
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.train import data_loader
from lakd_ray.train.data_loader import RankDataLoader


@pytest.mark.parametrize(
    ("train", "cpus"),
    [({"gpu": False}, 1), ({"gpu": "auto"}, 1), ({"gpu": True}, 2), ({"gpu": False, "reader_cpus": 3}, 3)],
)
def test_readers_use_the_configured_cpus(train, cpus, tmp_path, monkeypatch):
    recipe = {"model": {"pretrained": "some/model"}}
    content = {"name": "t", "languages": ["en"], "corpora": [{"name": "c", "root": "x"}], "train": train}
    config = Experiment.model_validate(content | {"teacher": recipe, "student": recipe})
    manifest = noise.manifest(tmp_path, train=10, dev=4)
    used: list[float] = []

    def stream(*_: Any, num_cpus: float, **__: Any) -> Iterator[Any]:
        used.append(num_cpus)
        return iter(())

    monkeypatch.setattr(data_loader, "stream_batches", stream)
    monkeypatch.setattr(inference, "stream_batches", stream)
    loader = RankDataLoader(build_run_graph(config).teachers[0], config, manifest, None, rank=0, world_size=1)
    assert not list(loader.audio_batches(0))
    inference.run_rank_inference(config, manifest, loader.dev_rows, {}, rank=0, world_size=1)
    assert used == [cpus, cpus]
