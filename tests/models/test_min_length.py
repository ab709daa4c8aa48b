"""The minimum length of a recording, computed from a configuration, is that of the network."""

import numpy as np
import pytest
import torch
from support import tiny_models as tiny

from lakd_ray.config import ModelConfig
from lakd_ray.errors import ClipError
from lakd_ray.inference.predictor import Predictor
from lakd_ray.models.min_length import min_samples, min_samples_of_model

PUBLISHED = {"model_type": "wav2vec2"}


def test_published_models_need_400_samples():
    assert min_samples(PUBLISHED) == min_samples({}) == 400
    assert min_samples({"model_type": "lakd-language-aware", "backbone": PUBLISHED}) == 400
    assert min_samples(tiny.WHISPER) == 1
    assert min_samples_of_model(ModelConfig(pretrained="unknown/has-this")) == 400


@pytest.mark.parametrize("changes", [{}, {"conv_kernel": [3, 2, 2], "conv_stride": [2, 3, 2]}])
def test_the_minimum_gives_one_frame_and_finite_logits(changes):
    model = tiny.model(**changes)
    needed = min_samples(model.network.config.to_dict())
    assert needed == min_samples(tiny.ARCHITECTURE | changes)
    assert model.count_frames(torch.tensor([needed, needed - 1])).tolist() == [1, 0]
    predictor = Predictor(model, tiny.card())
    noise = np.random.default_rng(0).normal(size=4 * needed).astype(np.float32)
    assert np.isfinite(predictor.logits([noise[:needed], noise])).all()
    with pytest.raises(ClipError, match=rf"the encoder of test/tiny needs at least .* \({needed} samples\)"):
        predictor.logits([noise, noise[: needed - 1]])


def test_a_loaded_model_knows_its_minimum(tmp_path):
    predictor = Predictor.load(tiny.checkpoint(tmp_path), device="cpu")
    assert predictor.backend.min_samples == min_samples(tiny.ARCHITECTURE)
