"""Cached features stand for the waves that they were made of."""

from pathlib import Path
from typing import Any

import noise
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from lakd_ray import storage
from lakd_ray.audio import decode_flac, to_float
from lakd_ray.config import Experiment
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.plan import evaluation_epoch
from lakd_ray.data.stream import Signal, Source, read_windows, request, unpack
from lakd_ray.errors import ConfigError
from lakd_ray.infer.features import Encoder, cached
from lakd_ray.models import pad
from lakd_ray.schema import FEATURES

CLIPS = 9
SHAPE = tiny.STILL | {"initializer_range": 0.5}  # so that utterances are told apart


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    noise.write(tmp_path, CLIPS)
    return noise.manifest(tmp_path, CLIPS - 1, 1)


def content(folder: Path, checkpoint: str, **model: Any) -> dict[str, Any]:
    recipe = {"model": {"pretrained": checkpoint, **model}}
    corpora = [{"name": "c", "root": str(folder)}]
    shape = {
        "name": "t",
        "storage": str(folder),
        "languages": ["en"],
        "corpora": corpora,
        "batch": {"max_utterances": 4},
        "audio": {"row_group_utterances": noise.ROW_GROUP},
    }
    return {**shape, "teacher": recipe, "student": recipe, "train": {"cached_features": True}}


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment.model_validate(content(tmp_path, tiny.checkpoint(tmp_path, **SHAPE)))


def read(manifest: Manifest, source: Source, experiment: Experiment) -> dict[int, Signal]:
    """Everything that a source yields, by row."""
    windows = evaluation_epoch(manifest, np.arange(CLIPS), experiment.batch).windows[0]
    found = {}
    for window in windows:
        tables = read_windows(request(manifest, window), source)
        for rows, table in zip(window.batches, tables, strict=True):
            found |= dict(zip(rows.tolist(), unpack(table, source), strict=True))
    return found


def test_logits_from_features_are_those_from_waves(experiment: Experiment, manifest: Manifest) -> None:
    source = cached(experiment, manifest, experiment.student.model)
    assert source is not None
    model = tiny.model(**SHAPE).eval()
    features, waves = read(manifest, source, experiment), read(manifest, Source(manifest.shards), experiment)
    assert sorted(features) == sorted(waves) == list(range(CLIPS))
    order = sorted(features)
    with torch.inference_mode():
        from_features = model(*pad([torch.from_numpy(features[row]) for row in order])).logits_BC
        from_waves = model(*pad([torch.from_numpy(waves[row]) for row in order])).logits_BC
    assert (from_features - from_waves).abs().max() < 0.02 * from_waves.abs().max()  # stored with 11 bits
    assert torch.cdist(from_features, from_waves).argmin(dim=1).tolist() == order, "not nearest to its own"


def test_features_lie_as_their_shard_does(experiment: Experiment, manifest: Manifest) -> None:
    source = cached(experiment, manifest, experiment.student.model)
    assert source is not None
    (location,), (shard,) = source.files, manifest.shards
    stored, audio = pq.ParquetFile(location), pq.ParquetFile(shard)
    assert stored.schema_arrow.equals(FEATURES)
    assert [stored.metadata.row_group(index).num_rows for index in range(stored.num_row_groups)] == [
        audio.metadata.row_group(index).num_rows for index in range(audio.num_row_groups)
    ]
    table = storage.read_table(shard)
    model = tiny.model(**SHAPE).eval()
    for content_of, clip in zip(
        storage.read_table(location)["features"].to_pylist(), table["audio"].to_pylist(), strict=True
    ):
        wave_1T = torch.from_numpy(to_float(decode_flac(clip))).unsqueeze(0)
        alone_1FH = model.features(wave_1T, torch.tensor([wave_1T.shape[1]]))
        found_FH = np.frombuffer(content_of, dtype=np.float16).reshape(-1, source.channels)
        np.testing.assert_allclose(found_FH, alone_1FH[0].detach().numpy(), atol=1e-2)


def test_what_is_stored_is_not_computed_again(
    experiment: Experiment, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached(experiment, manifest, experiment.student.model)
    monkeypatch.setattr(Encoder, "store", lambda *_: pytest.fail("computed again"))
    assert cached(experiment, manifest, experiment.teacher.model) == first


def test_the_key_is_the_encoder_not_the_head() -> None:
    one, other = tiny.model(**SHAPE), tiny.model(**SHAPE)
    torch.nn.init.zeros_(other.network.classifier.weight)
    assert one.first_step_key == other.first_step_key
    assert one.first_step_key != tiny.model(seed=1, **SHAPE).first_step_key
    assert one.first_step_key != tiny.model(**SHAPE, feat_extract_activation="relu").first_step_key


def test_features_of_an_encoder_that_is_trained_are_refused(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ValueError), match="feature encoder's output, but that of teacher and student"):
        Experiment.model_validate(content(tmp_path, "somewhere", freeze_feature_encoder=False))


def test_not_asked_for_is_not_done(experiment: Experiment, manifest: Manifest) -> None:
    plain = experiment.model_copy(update={"train": experiment.train.model_copy(update={"cached_features": False})})
    assert cached(plain, manifest, experiment.student.model) is None
