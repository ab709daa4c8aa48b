"""The worker of evaluation returns classes and languages by name, whatever their order in a checkpoint."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support import tiny_models as tiny

from lakd_ray.data.provenance import Provenance
from lakd_ray.data.reader import ShardSource
from lakd_ray.inference import batch
from lakd_ray.inference.batch import ModelQuery
from lakd_ray.inference.predictor import Predictor
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import CheckpointMetadata, save_checkpoint


def test_a_worker_returns_classes_and_languages_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    metadata = CheckpointMetadata("tiny", PAPER_EMOTIONS, tiny.LANGUAGES, Provenance(), {})
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "aware"), tiny.aware().network, metadata, scratch=tmp_path / "scratch")
    random = np.random.default_rng(0)
    waves = [(0.1 * random.standard_normal(length)).astype(np.float32) for length in (6_000, 9_000, 5_000)]
    monkeypatch.setattr(batch, "unpack_signals", lambda table, source: waves)
    order = PAPER_EMOTIONS[::-1]
    queries = {"given": ModelQuery(str(tmp_path / "aware")), "found": ModelQuery(str(tmp_path / "aware"), "identified")}
    worker = batch._InferenceActor(queries, ShardSource(()), 1, ["fr", "en", "fi"], order)
    (row,) = worker(pa.table({"rows": [[2, 0, 1]]})).to_pylist()

    predictor = Predictor.load(str(tmp_path / "aware"))
    expected_BC = predictor.logits(waves, ["fi", "fr", "en"])
    np.testing.assert_allclose(np.array(row["given"]).reshape(3, 4), expected_BC[:, ::-1], rtol=0, atol=1e-5)
    identified = [prediction.language for prediction in predictor.predict_waves(waves, [None] * 3)]
    assert row["language found"] == identified and set(identified) <= set(tiny.LANGUAGES)
