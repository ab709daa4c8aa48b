"""Masks of SpecAugment are drawn on the host as transformers draws them, reproducibly for each utterance."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_models as tiny
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from lakd_ray.errors import ConfigError
from lakd_ray.models import EmotionClassifier, build_model, pad_batch
from lakd_ray.models.spec_augment import SpanSettings, SpecAugmentMasks, plan_spec_augment

FAMILIES = ("wav2vec2", "hubert", "wavlm", "unispeech-sat")
DRAWS = 1000
LENGTHS = (50, 31, 15, 12, 9, 1)
"""Frames of utterances in a batch; the last two are shorter than a mask of ten frames."""


def config(**changes: Any) -> Any:
    settings = {"mask_time_prob": 0.3, "mask_time_length": 10, "mask_time_min_masks": 0}
    settings |= {"mask_feature_prob": 0.2, "mask_feature_length": 4, "mask_feature_min_masks": 0}
    return SimpleNamespace(**settings | changes)


@pytest.mark.parametrize("settings", [SpanSettings(0.3, 10, 0), SpanSettings(0.05, 10, 2), SpanSettings(0.9, 10, 0)])
def test_masks_have_the_distribution_of_transformers(settings: SpanSettings):
    np.random.seed(0)
    attention_mask = torch.arange(LENGTHS[0]) < torch.tensor(LENGTHS)[:, None]
    expected = np.stack(
        [
            _compute_mask_indices(
                attention_mask.shape, settings.prob, settings.length, attention_mask, settings.min_spans
            )
            for _ in range(DRAWS)
        ]
    )
    for row, frames in enumerate(LENGTHS):
        found = np.stack(
            [settings.draw(frames, LENGTHS[0], np.random.default_rng([row, number])) for number in range(DRAWS)]
        )
        theirs = expected[:, row, :frames]  # they may also mask the last frame of the padding, which has no effect
        assert not found[:, frames:].any()
        np.testing.assert_allclose(found[:, :frames].mean(0), theirs.mean(0), atol=0.085)  # 3.8 standard errors
        counts, their_counts = found.sum(1), theirs.sum(1)
        assert counts.mean() == pytest.approx(their_counts.mean(), abs=0.6)
        assert (counts.min(), counts.max()) == pytest.approx((their_counts.min(), their_counts.max()), abs=2)


def test_the_smallest_number_of_spans_is_masked_where_it_fits():
    settings = SpanSettings(1e-6, 10, 2)
    masked = [settings.draw(frames, 50, np.random.default_rng(1)).sum() for frames in (50, 11, 10, 9, 1)]
    assert 10 < masked[0] <= 20 and masked[1:] == [11, 10, 0, 0]
    assert settings.draw(8, 8, np.random.default_rng(1)).sum() == 0  # a batch shorter than a mask


def test_an_utterances_masks_do_not_depend_on_its_batch():
    seeds = [(7, 3, row) for row in (11, 4, 90)]
    masks = plan_spec_augment(config(), [40, 50, 50], 32, seeds)
    alone = plan_spec_augment(config(), [50], 32, seeds[1:2])
    assert masks is not None and alone is not None
    for both, single in zip(masks, alone, strict=True):
        assert both is not None and single is not None and torch.equal(both[1], single[0])
        assert not torch.equal(both[1], both[2])
    next_epoch = plan_spec_augment(config(), [50], 32, [(7, 4, 4)])
    assert next_epoch is not None and not torch.equal(next_epoch.time_BF, alone.time_BF)


def test_settings_turn_masks_off():
    assert plan_spec_augment(config(apply_spec_augment=False), [50], 32, [(1,)]) is None
    assert plan_spec_augment(config(mask_time_prob=0.0, mask_feature_prob=0.0), [50], 32, [(1,)]) is None
    masks = plan_spec_augment(config(mask_feature_prob=0.0), [50], 32, [(1,)])
    assert masks is not None and masks.time_BF is not None and masks.channels_BD is None
    with pytest.raises(ConfigError, match="`mask_feature_length` is 64, but the encoder has 32 channels"):
        plan_spec_augment(config(mask_feature_length=64), [50], 32, [(1,)])


def test_networks_without_spec_augment_plan_no_masks():
    whisper = build_model(tiny.config().model_copy(update={"config": tiny.WHISPER}), ("a", "b"), seed=0)
    assert whisper.plan_spec_augment([50], [(1,)]) is None
    frozen = EmotionClassifier(tiny.model(mask_time_prob=0.5).network, freeze_encoder=True)
    assert frozen.plan_spec_augment([50], [(1,)]) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_masked_hidden_states_are_those_of_transformers(family: str):
    masks = {"mask_time_prob": 0.5, "mask_time_length": 3, "mask_feature_prob": 0.3, "mask_feature_length": 4}
    model = tiny.model(**tiny.DETERMINISTIC | masks, model_type=family)
    hidden_BFD = torch.randn(2, 20, 32, generator=torch.Generator().manual_seed(0))
    planned = model.plan_spec_augment([20, 13], [(1,), (2,)])
    assert planned is not None and planned.time_BF is not None and planned.channels_BD is not None
    embedding_D = model.backbone.encoder.masked_spec_embed
    only_time = SpecAugmentMasks(planned.time_BF, None).apply(hidden_BFD, embedding_D)
    model.backbone.encoder.eval()  # transformers then applies the given mask but draws none
    with torch.no_grad():
        expected = model.backbone.encoder._mask_hidden_states(hidden_BFD.clone(), planned.time_BF)
    torch.testing.assert_close(only_time, expected)
    masked = planned.apply(hidden_BFD, embedding_D)
    torch.testing.assert_close(masked, expected * ~planned.channels_BD[:, None, :])
    logits_BC = model(*pad_batch([torch.randn(6_400), torch.randn(4_200)]), None, planned).logits_BC
    logits_BC.sum().backward()
    assert torch.isfinite(logits_BC).all() and embedding_D.grad is not None


def test_the_embedding_gets_a_gradient_without_a_masked_frame():
    model = tiny.model(mask_time_prob=0.5, mask_time_length=50)
    clips = pad_batch([torch.randn(3_000)])
    planned = model.plan_spec_augment(model.count_frames(clips[1]).tolist(), [(1,)])
    assert planned is not None and planned.time_BF is not None and not planned.time_BF.any()
    model(*clips, None, planned).logits_BC.sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_a_language_aware_network_masks_in_training_with_transformers():
    network = tiny.aware(**tiny.DETERMINISTIC | {"mask_time_prob": 0.5, "mask_time_length": 2}).network
    network.head.language_dropout = 0.0
    wave_BT, languages_B = torch.randn(2, 8_000), torch.tensor([0, 1])
    first, second = (network(wave_BT, language_ids=languages_B).logits for _ in range(2))
    assert not torch.equal(first, second)
    network.eval()
    first, second = (network(wave_BT, language_ids=languages_B).logits for _ in range(2))
    assert torch.equal(first, second)
