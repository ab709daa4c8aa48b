"""Cached features give the results of the waves they were computed from."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support import fake_data as noise
from support import tiny_models as tiny

from lakd_ray import storage
from lakd_ray.audio import decode_flac, to_float
from lakd_ray.config import Experiment, ModelConfig
from lakd_ray.data.batch_plan import plan_evaluation_epoch
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.reader import ShardSource, Signal, make_read_request, read_batches, unpack_signals
from lakd_ray.data.schema import FEATURES_SCHEMA
from lakd_ray.errors import ConfigError
from lakd_ray.inference.feature_cache import FeatureCache, get_or_compute_features
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import EmotionClassifier, build_model, pad_batch, save_checkpoint
from lakd_ray.train.step import Objective, TrainBatch, compute_losses

CLIPS = 9
SHAPE = tiny.DETERMINISTIC | {"initializer_range": 0.5}  # so that utterances have different logits


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
    return {**shape, "teacher": recipe, "student": recipe, "train": {"cache_features": True}}


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment.model_validate(content(tmp_path, tiny.checkpoint(tmp_path, **SHAPE)))


def read(manifest: Manifest, source: ShardSource, experiment: Experiment) -> dict[int, Signal]:
    """Return the signals of a source by row."""
    read_groups = plan_evaluation_epoch(manifest, np.arange(CLIPS), experiment.batch).read_groups[0]
    signals = {}
    for read_group in read_groups:
        tables = read_batches(make_read_request(manifest, read_group), source)
        for rows, table in zip(read_group.batches, tables, strict=True):
            signals |= dict(zip(rows.tolist(), unpack_signals(table, source), strict=True))
    return signals


def test_logits_from_features_equal_logits_from_waves(experiment: Experiment, manifest: Manifest) -> None:
    source = get_or_compute_features(experiment, manifest, experiment.student.model)
    assert source is not None
    model = tiny.model(**SHAPE).eval()
    features, waves = read(manifest, source, experiment), read(manifest, ShardSource(manifest.shards), experiment)
    assert sorted(features) == sorted(waves) == list(range(CLIPS))
    order = sorted(features)
    with torch.inference_mode():
        from_features = model(*pad_batch([torch.from_numpy(features[row]) for row in order])).logits_BC
        from_waves = model(*pad_batch([torch.from_numpy(waves[row]) for row in order])).logits_BC
    assert (from_features - from_waves).abs().max() < 0.02 * from_waves.abs().max()  # stored with 11 bits
    assert torch.cdist(from_features, from_waves).argmin(dim=1).tolist() == order, "not nearest to its own"


def test_features_have_the_row_groups_of_their_shard(experiment: Experiment, manifest: Manifest) -> None:
    source = get_or_compute_features(experiment, manifest, experiment.student.model)
    assert source is not None
    (location,), (shard,) = source.files, manifest.shards
    stored, audio = pq.ParquetFile(location), pq.ParquetFile(shard)
    assert stored.schema_arrow.equals(FEATURES_SCHEMA)
    assert [stored.metadata.row_group(index).num_rows for index in range(stored.num_row_groups)] == [
        audio.metadata.row_group(index).num_rows for index in range(audio.num_row_groups)
    ]
    table = storage.read_table(shard)
    model = tiny.model(**SHAPE).eval()
    for content_of, clip in zip(
        storage.read_table(location)["features"].to_pylist(), table["audio"].to_pylist(), strict=True
    ):
        wave_1T = torch.from_numpy(to_float(decode_flac(clip))).unsqueeze(0)
        alone_1FH = model.extract_features(wave_1T, torch.tensor([wave_1T.shape[1]]))
        stored_FH = np.frombuffer(content_of, dtype=np.float16).reshape(-1, source.feature_dim)
        np.testing.assert_allclose(stored_FH, alone_1FH[0].detach().numpy(), atol=1e-2)


def test_stored_features_are_not_computed_again(
    experiment: Experiment, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = get_or_compute_features(experiment, manifest, experiment.student.model)
    monkeypatch.setattr(FeatureCache, "compute_and_store", lambda *_: pytest.fail("computed again"))
    assert get_or_compute_features(experiment, manifest, experiment.teacher.model) == first


def test_a_language_aware_student_shares_its_teachers_features(experiment: Experiment, manifest: Manifest) -> None:
    source = get_or_compute_features(experiment, manifest, experiment.teacher.model)
    aware = experiment.student.model.model_copy(update={"language_aware": tiny.AWARE})
    assert get_or_compute_features(experiment, manifest, aware) == source
    model = build_model(aware, experiment.emotions, seed=0, languages=tiny.LANGUAGES).eval()
    features, waves = read(manifest, source, experiment), read(manifest, ShardSource(manifest.shards), experiment)
    languages_B = torch.arange(CLIPS) % 3
    with torch.inference_mode():
        (from_features, _, _), (from_waves, _, _) = (
            model(*pad_batch([torch.from_numpy(signals[row]) for row in range(CLIPS)]), languages_B)
            for signals in (features, waves)
        )
    assert (from_features - from_waves).abs().max() < 0.02 * from_waves.abs().max()


def test_the_key_depends_on_the_encoder_and_not_on_the_head() -> None:
    model, other = tiny.model(**SHAPE), tiny.model(**SHAPE)
    torch.nn.init.zeros_(other.network.classifier.weight)
    assert model.frontend_fingerprint == other.frontend_fingerprint
    assert model.frontend_fingerprint != tiny.model(seed=1, **SHAPE).frontend_fingerprint
    assert model.frontend_fingerprint != tiny.model(**SHAPE, feat_extract_activation="relu").frontend_fingerprint


def test_features_of_a_trained_encoder_are_rejected(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ValueError), match="the feature encoder of teacher and student is trained"):
        Experiment.model_validate(content(tmp_path, "unused", freeze_feature_encoder=False))


PROBED = {"wav2vec2": tiny.ARCHITECTURE | {"initializer_range": 0.5}, "whisper": tiny.WHISPER | {"init_std": 0.5}}


def pretrained(folder: Path, family: str, seed: int = 0) -> str:
    """Save a checkpoint with dropout and SpecAugment, and return its folder."""
    network = build_model(
        ModelConfig(config=PROBED[family], freeze_feature_encoder=False), PAPER_EMOTIONS, seed=seed
    ).network
    (folder / "scratch").mkdir(parents=True)
    save_checkpoint(str(folder / family), network, tiny.card(), scratch=folder / "scratch")
    return str(folder / family)


def head_after_training(model: EmotionClassifier, signals: list[torch.Tensor]) -> torch.Tensor:
    """Return the head's weights after some steps, as one vector."""
    model.train()
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
    batch = TrainBatch(*pad_batch(signals), torch.arange(len(signals)) % len(PAPER_EMOTIONS), ["en"] * len(signals))
    for _ in range(10):
        optimizer.zero_grad()
        (compute_losses(model, batch, Objective()).loss / len(signals)).backward()
        optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in model.parameters() if weight.requires_grad])


@pytest.mark.parametrize("family", PROBED)
@pytest.mark.parametrize("convolutions", [True, False])
def test_a_probe_trained_on_cached_vectors_equals_one_trained_on_waves(
    family: str, convolutions: bool, tmp_path: Path, manifest: Manifest
) -> None:
    changes = {"freeze_encoder": True, "freeze_feature_encoder": convolutions}
    experiment = Experiment.model_validate(content(tmp_path, pretrained(tmp_path / "p", family), **changes))
    source = get_or_compute_features(experiment, manifest, experiment.student.model)
    assert source is not None
    vectors, waves = read(manifest, source, experiment), read(manifest, ShardSource(manifest.shards), experiment)
    assert {vector.shape for vector in vectors.values()} == {(1, source.feature_dim)}
    start, by_vectors, by_waves = (build_model(experiment.student.model, PAPER_EMOTIONS, seed=3) for _ in range(3))
    before = torch.cat([weight.detach().flatten() for weight in start.parameters() if weight.requires_grad])
    from_vectors = head_after_training(by_vectors, [torch.from_numpy(vectors[row]) for row in range(CLIPS)])
    from_waves = head_after_training(by_waves, [torch.from_numpy(waves[row]) for row in range(CLIPS)])
    assert (from_vectors - from_waves).norm() < 0.01 * (from_waves - before).norm()  # stored with 11 bits


@pytest.mark.parametrize("family", PROBED)
def test_the_key_of_a_probe_does_not_depend_on_the_path_of_its_encoder(family: str, tmp_path: Path) -> None:
    def key(folder: str, **changes: Any) -> str:
        return build_model(
            ModelConfig(pretrained=folder, freeze_encoder=True, **changes), PAPER_EMOTIONS, seed=5
        ).frontend_fingerprint

    first, copy = (pretrained(tmp_path / name, family) for name in ("first", "copy"))
    other = pretrained(tmp_path / "other", family, seed=1)
    assert key(first) == key(copy)
    assert len({key(first), key(other), key(first, num_layers=1)}) == 3


def test_spectrograms_are_not_cached(tmp_path: Path, manifest: Manifest) -> None:
    experiment = Experiment.model_validate(content(tmp_path, pretrained(tmp_path / "p", "whisper")))
    with pytest.raises(ConfigError, match=r"cache_features.*would store its spectrograms.*freeze_encoder: true"):
        get_or_compute_features(experiment, manifest, experiment.student.model)


def test_no_features_without_cache_features(experiment: Experiment, manifest: Manifest) -> None:
    plain = experiment.model_copy(update={"train": experiment.train.model_copy(update={"cache_features": False})})
    assert get_or_compute_features(plain, manifest, experiment.student.model) is None
