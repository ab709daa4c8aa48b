"""What a run inherits from the checkpoint it starts from."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lakd_ray.config import Experiment, Model, Recipe
from lakd_ray.data.manifest import Manifest
from lakd_ray.errors import HygieneError
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import Card, build, save
from lakd_ray.provenance import Provenance, Seen
from lakd_ray.runs import teacher_runs
from lakd_ray.train import teaching

SPEAKERS = ["demo:train", "demo:dev", "demo:test"]
ARCHITECTURE = {
    "model_type": "wav2vec2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def manifest() -> Manifest:
    """One utterance each in train, dev and test."""
    columns = {"utterance": ["a", "b", "c"], "audio_sha256": ["1", "2", "3"], "emotion": ["anger"] * 3}
    zeros_N = np.zeros(3, dtype=np.int64)
    return Manifest(
        table=pa.table({**columns, "language": ["en"] * 3, "speaker": SPEAKERS}),
        labels_N=zeros_N,
        splits_N=np.array(["train", "dev", "test"]),
        languages_N=np.array(["en"] * 3, dtype=object),
        samples_N=zeros_N + 16_000,
        shards=("shard",),
        shard_N=zeros_N,
        row_group_N=zeros_N,
        row_N=np.arange(3),
    )


def experiment(tmp_path: Path, heard: set[str]) -> Experiment:
    """An experiment whose teacher starts from a checkpoint that was trained on some speakers."""
    model = build(Model(architecture=ARCHITECTURE, freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0)
    (tmp_path / "scratch").mkdir()
    card = Card("earlier", PAPER_EMOTIONS, ("en",), Provenance(trained_on=Seen(frozenset(heard))), {})
    save(str(tmp_path / "earlier"), model.network, card, scratch=tmp_path / "scratch")
    recipe = Recipe(model=Model(pretrained=str(tmp_path / "earlier")))
    corpora = ({"name": "demo", "root": "nowhere"},)
    content = {"name": "x", "storage": str(tmp_path), "languages": ["en"], "corpora": corpora}
    return Experiment.model_validate({**content, "teacher": recipe, "student": recipe})


@pytest.mark.parametrize("heard", ["demo:dev", "demo:test"])
def test_a_checkpoint_that_heard_whom_it_is_judged_on_is_no_start(tmp_path: Path, heard: str) -> None:
    config = experiment(tmp_path, {heard})
    with pytest.raises(HygieneError, match=heard):
        teaching.job(config, manifest(), teacher_runs(config)[0])


def test_what_the_start_has_heard_is_inherited(tmp_path: Path) -> None:
    config = experiment(tmp_path, {"other:someone"})
    job = teaching.job(config, manifest(), teacher_runs(config)[0])
    assert Provenance().inherit(job.parents).trained_on.speakers == {"other:someone"}
    assert str(tmp_path / "earlier") in job.made_by["inputs"]
