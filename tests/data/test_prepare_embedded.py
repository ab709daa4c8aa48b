"""Test preparing recordings that are embedded in the rows of a Parquet file."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data import prepare
from lakd_ray.data.manifest import MANIFEST_FILE

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def encode_noise(samples: int) -> bytes:
    buffer = io.BytesIO()
    noise = 0.1 * np.random.default_rng(samples).standard_normal(samples)
    soundfile.write(buffer, noise, 16_000, format="WAV")
    return buffer.getvalue()


def test_every_row_becomes_an_utterance(tmp_path: Path) -> None:
    rows = [
        {
            "audio": {"bytes": encode_noise(4000 + n), "path": None},
            "emotion": "anger",
            "speaker": str(n % 4),
            "language": "en",
        }
        for n in range(12)
    ]
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus/all.parquet", row_group_size=5)
    recipe = {"model": {"pretrained": "none"}}
    config = Experiment.model_validate(
        {
            "name": "t",
            "storage": str(tmp_path / "outputs"),
            "languages": ["en"],
            "corpora": [{"name": "c", "importer": "huggingface", "root": str(tmp_path / "corpus")}],
            "teacher": recipe,
            "student": recipe,
        }
    )
    folder = prepare.prepare_corpora(config)
    manifest = storage.read_table(storage.join(folder, MANIFEST_FILE), ["source", "num_samples"]).to_pylist()
    lengths = {row["source"]: row["num_samples"] for row in manifest}
    assert lengths == {f"{tmp_path}/corpus/all.parquet#row={n}": 4000 + n for n in range(12)}
