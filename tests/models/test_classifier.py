"""Test batch independence, agreement with transformers, and golden values of the classifier."""

from typing import Any

import pytest
import torch
from support import tiny_models as tiny
from torch import Tensor, nn
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    AutoModelForAudioClassification,
    Wav2Vec2FeatureExtractor,
)

from lakd_ray.config import DistillLossConfig
from lakd_ray.distill import distillation_loss
from lakd_ray.errors import ConfigError
from lakd_ray.models import EmotionClassifier, pad_batch
from lakd_ray.models.wav2vec2 import masked_group_norm, normalize_waveform

# wav2vec2-base has a group norm and normalizes after each layer; -large and XLS-R have layer norms before each layer.
STYLES: dict[str, dict[str, Any]] = {
    "group": {"feat_extract_norm": "group"},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
BACKBONES = [(family, style) for family in ("wav2vec2", "hubert", "wavlm", "unispeech-sat") for style in STYLES]
LENGTHS = (16_000, 2_500, 9_999, 4_321, 12_800)


def network(family: str, style: str) -> EmotionClassifier:
    """Build a model in eval mode, with random norms instead of the initial identity."""
    model = tiny.model(model_type=family, **STYLES[style]).eval()
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            for parameter in module.parameters():
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def waves(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [normalize_utterance(torch.randn(length, generator=generator)) for length in lengths]


def normalize_utterance(wave_T: Tensor) -> Tensor:
    """Normalize a wave as transformers' networks expect it."""
    return normalize_waveform(wave_T[None], torch.tensor([len(wave_T)]))[0]


@pytest.mark.parametrize(("family", "style"), BACKBONES)
@torch.inference_mode()
def test_logits_do_not_depend_on_the_batch(family, style):
    model, clips = network(family, style), waves()
    unbatched = torch.cat([model(*pad_batch([clip])).logits_BC for clip in clips])
    assert (unbatched[0] - unbatched[1]).abs().max() > 1e-3, "equal logits would make the test void"
    for indices in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0], [1, 3], [2, 2, 0]):
        batched = model(*pad_batch([clips[index] for index in indices])).logits_BC
        torch.testing.assert_close(batched, unbatched[indices], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_values_in_the_padding_have_no_effect():
    for family, style in BACKBONES:
        model = network(family, style)
        wave_BT, lengths_B = pad_batch(waves((3_000, 8_000)))
        expected = model(wave_BT, lengths_B).logits_BC
        wave_BT[0, 3_000:] = 50.0
        torch.testing.assert_close(model(wave_BT, lengths_B).logits_BC, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "style"), BACKBONES)
@torch.inference_mode()
def test_logits_of_one_utterance_match_transformers(family, style):
    model = network(family, style)
    for clip in waves():
        torch.testing.assert_close(
            model(*pad_batch([clip])).logits_BC, model.network(clip[None]).logits, atol=1e-5, rtol=0
        )


@torch.inference_mode()
def test_logits_of_transformers_depend_on_the_batch():
    """This is why the project has its own forward pass; if the test fails, it is no longer needed."""
    model, clips = network("wav2vec2", "group"), waves((2_500, 16_000))
    wave_BT, lengths_B = pad_batch(clips)
    mask_BT = (torch.arange(wave_BT.shape[1]) < lengths_B[:, None]).long()
    batched = model.network(wave_BT, attention_mask=mask_BT).logits[0]
    assert (batched - model.network(clips[0][None]).logits[0]).abs().max() > 1e-4


@pytest.mark.parametrize("length", [1_600, 2_000, 16_000])
def test_the_frame_count_matches_the_features(length):
    model = network("wav2vec2", "group")
    wave_BT, lengths_B = pad_batch(waves((length,)))
    assert model.extract_features(wave_BT, lengths_B).shape == (1, int(model.count_frames(lengths_B)), 16)


@pytest.mark.parametrize("valid", [[20, 20, 20], [7, 20, 1]])
def test_masked_group_norm_matches_the_group_norm_of_each_utterance(valid):
    torch.manual_seed(0)
    norm = nn.GroupNorm(8, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    hidden_BHT = 3 * torch.randn(3, 8, 20) + 1
    normalized = masked_group_norm(hidden_BHT, torch.tensor(valid), norm)
    for index, steps in enumerate(valid):
        if steps > 1:  # torch cannot normalize a single value
            expected = norm(hidden_BHT[index : index + 1, :, :steps])[0]
            torch.testing.assert_close(normalized[index, :, :steps], expected, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(normalized).all()


def test_waves_are_normalized_as_by_transformers_feature_extractor():
    clips = [3 * torch.randn(length, generator=torch.Generator().manual_seed(length)) + 0.2 for length in LENGTHS]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    expected = extractor([clip.numpy() for clip in clips], sampling_rate=16_000, padding=True, return_tensors="pt")
    wave_BT, lengths_B = pad_batch(clips)
    wave_BT[1, LENGTHS[1] :] = 99
    torch.testing.assert_close(normalize_waveform(wave_BT, lengths_B), expected.input_values, atol=1e-5, rtol=0)
    assert normalize_waveform(torch.zeros(1, 100), torch.tensor([100])).abs().max() == 0


@torch.inference_mode()
def test_logits_do_not_depend_on_loudness():
    model, (clip, *_) = network("wav2vec2", "group"), waves()
    quiet, loud = (model(*pad_batch([loudness * clip])).logits_BC for loudness in (0.1, 1.0))
    torch.testing.assert_close(quiet, loud, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "style"), BACKBONES)
@torch.inference_mode()
def test_every_hidden_state_matches_transformers(family, style):
    model, (clip, *_) = network(family, style), waves()
    features_BFH = model.extract_features(*pad_batch([clip]))
    num_frames_B = model.count_frames(torch.tensor([len(clip)]))
    hidden_states = model.backbone.encode(features_BFH, num_frames_B, output_hidden_states=True)
    base = getattr(model.network, model.network.base_model_prefix)
    outputs = base(clip[None], output_hidden_states=True)
    assert len(hidden_states) == len(outputs.hidden_states) == model.backbone.num_layers + 1
    for hidden, expected in zip(hidden_states, [*outputs.hidden_states[:-1], outputs.last_hidden_state], strict=True):
        torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)


def test_masked_group_norm_needs_a_group_per_channel():
    with pytest.raises(ConfigError, match="the group norm has 2 groups for 8 channels"):
        masked_group_norm(torch.zeros(1, 8, 5), torch.tensor([5]), nn.GroupNorm(2, 8))


def test_every_weight_gets_a_gradient_and_other_utterances_get_none():
    model = tiny.model(**tiny.DETERMINISTIC)
    wave_BT, lengths_B = pad_batch(waves((3_000, 8_000)))
    wave_BT.requires_grad_()
    logits_BC = model(wave_BT, lengths_B).logits_BC
    (gradient_BT,) = torch.autograd.grad(logits_BC[0].sum(), wave_BT, retain_graph=True)
    assert gradient_BT[0, :3_000].abs().max() > 0
    assert gradient_BT[0, 3_000:].abs().max() == 0
    assert gradient_BT[1].abs().max() == 0
    logits_BC[:, 0].sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_an_unsupported_family_is_rejected():
    config = ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(
        ConfigError,
        match="model_type 'audio-spectrogram-transformer' is not supported: expected one of wav2vec2, hubert",
    ):
        EmotionClassifier(ASTForAudioClassification(config))


# Seeded model, synthetic waves, seeded teachers. After an intended change of these values, print them again:
#     PYTHONPATH=tests:. .venv/bin/python tests/models/test_classifier.py
GOLDEN: dict[str, list[Any]] = {
    "group logits": [[0.00287, -0.00663, 0.00779, -0.00014], [3e-05, -0.01795, 0.01234, -0.01461]],
    "group total": [[1.18477], [1.22697]],
    "group ce": [[1.38441], [1.36898]],
    "group kl": [[0.58583], [0.80096]],
    "layer logits": [[0.00242, 0.00865, -0.00088, -0.00159], [0.00587, 0.00452, 0.00378, 0.00197]],
    "layer total": [[1.07294], [1.23968]],
    "layer ce": [[1.38603], [1.38655]],
    "layer kl": [[0.13367], [0.79907]],
}


def golden(style: str) -> dict[str, list[Any]]:
    model = tiny.model(seed=42, **STYLES[style], **tiny.DETERMINISTIC)
    ramp_T = torch.arange(8_000) / 16_000
    clips = [torch.sin(2 * torch.pi * pitch * ramp_T[:length]) for pitch, length in ((220, 8_000), (1_500, 5_000))]
    wave_BT, lengths_B = pad_batch([normalize_utterance(clip) for clip in clips])
    with torch.no_grad():
        logits_BC = model(wave_BT, lengths_B).logits_BC
    teachers_BKC = torch.tensor([[[2.0, 0, -1, 0], [0, 1, 0, 0]], [[0, 0, 3, 1], [-1, 0, 1, 2]]])
    losses = distillation_loss(
        logits_BC, teachers_BKC, torch.tensor([0, 2]), DistillLossConfig(temperature=5.0, lam=0.25)
    )
    return {
        f"{style} {name}": [[round(number, 5) for number in row] for row in value.view(2, -1).tolist()]
        for name, value in (("logits", logits_BC), ("total", losses.total_B), ("ce", losses.ce_B), ("kl", losses.kl_B))
    }


@pytest.mark.parametrize("style", STYLES)
def test_golden_values(style):
    values = golden(style)
    assert values
    for name, value in values.items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(GOLDEN[name]), atol=1e-4, rtol=0, msg=name)


def test_the_network_is_a_transformers_class():
    network = tiny.model().network
    assert type(network) is type(AutoModelForAudioClassification.from_config(network.config))


if __name__ == "__main__":
    for style in STYLES:
        for name, value in golden(style).items():
            print(f"    {name!r}: {value},".replace("'", '"'))
