"""Test that Whisper's spectrogram and logits match transformers and do not depend on the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_models as tiny
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, WhisperFeatureExtractor

from lakd_ray.config import LanguageAwareHeadConfig, ModelConfig
from lakd_ray.errors import ConfigError
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import EmotionClassifier, build_model, load_checkpoint, pad_batch, save_checkpoint

ENCODER = Path(__file__).parents[3] / "shared" / "models" / "whisper-base-encoder"
SHAPE = tiny.WHISPER
LENGTHS = (16_000, 4_000, 9_999)  # its input is one second


def whisper(seed: int = 0, **changes: Any) -> EmotionClassifier:
    model = ModelConfig(config=SHAPE, freeze_feature_encoder=False, **changes)
    return build_model(model, PAPER_EMOTIONS, seed=seed, languages=tiny.LANGUAGES).eval()


def waves(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def transformers_features(clips: list[torch.Tensor], mels: int = 80, seconds: int = 1) -> torch.Tensor:
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds)
    features: torch.Tensor = extractor([np.asarray(clip) for clip in clips], sampling_rate=16_000, return_tensors="pt")[
        "input_features"
    ]
    return features


@torch.inference_mode()
def test_the_spectrogram_matches_transformers():
    clips = [*waves(), torch.zeros(8_000), 0.1 * torch.sin(torch.arange(20_000) / 9)]  # the last one is too long
    features_BSM = whisper().extract_features(*pad_batch(clips))
    torch.testing.assert_close(features_BSM.transpose(1, 2), transformers_features(clips), atol=2e-4, rtol=0)


@pytest.mark.parametrize("aware", [None, tiny.AWARE], ids=["plain", "language-aware"])
@torch.inference_mode()
def test_logits_do_not_depend_on_the_batch(aware: LanguageAwareHeadConfig | None):
    model, clips = whisper(language_aware=aware), waves()
    batched = model(*pad_batch(clips)).logits_BC
    unbatched = torch.cat([model(*pad_batch([clip])).logits_BC for clip in clips])
    torch.testing.assert_close(batched, unbatched, atol=1e-5, rtol=0)
    assert (unbatched[0] - unbatched[1]).abs().max() > 1e-4


@torch.inference_mode()
def test_transformers_loads_a_checkpoint_and_gives_the_same_logits(tmp_path: Path):
    model, clips = whisper(), waves()
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "saved"), model.network, tiny.card(), scratch=tmp_path / "scratch")
    stock = AutoModelForAudioClassification.from_pretrained(tmp_path / "saved").eval()
    extractor = WhisperFeatureExtractor.from_pretrained(tmp_path / "saved")
    features = extractor([clip.numpy() for clip in clips], sampling_rate=16_000, return_tensors="pt").input_features
    loaded, _ = load_checkpoint(str(tmp_path / "saved"))
    expected = model(*pad_batch(clips)).logits_BC
    torch.testing.assert_close(loaded(*pad_batch(clips)).logits_BC, expected)
    torch.testing.assert_close(stock(features).logits, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_the_saved_feature_extractor_suits_a_language_aware_student(tmp_path: Path):
    model, clips = whisper(language_aware=tiny.AWARE), waves()
    languages_B = torch.tensor([0, 1, 2])
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "saved"), model.network, tiny.card(), scratch=tmp_path / "scratch")
    stock = AutoModelForAudioClassification.from_pretrained(tmp_path / "saved").eval()
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "saved")
    inputs = extractor([clip.numpy() for clip in clips], sampling_rate=16_000, padding=True, return_tensors="pt")
    expected = model(*pad_batch(clips), languages_B).logits_BC
    torch.testing.assert_close(stock(**inputs, language_ids=languages_B).logits, expected, atol=1e-6, rtol=0)


def test_position_embeddings_are_never_trained(tmp_path: Path):
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "saved"), whisper().network, tiny.card(), scratch=tmp_path / "scratch")
    loaded = build_model(
        ModelConfig(pretrained=str(tmp_path / "saved"), freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0
    )
    for model in (whisper(), loaded):
        fixed = [name for name, weight in model.named_parameters() if not weight.requires_grad]
        assert fixed == ["network.encoder.embed_positions.weight"]


def test_a_fractional_number_of_seconds_is_rejected():
    with pytest.raises(ConfigError, match="`max_source_positions` is 75: expected a multiple of 50"):
        build_model(
            ModelConfig(config=SHAPE | {"max_source_positions": 75}, freeze_feature_encoder=False), ["a"], seed=0
        )


def test_frames_of_the_padding_are_not_counted():
    lengths_B = torch.tensor([1, 320, 321, 16_000, 99_999])
    assert whisper().count_frames(lengths_B).tolist() == [1, 1, 2, 50, 50]


@pytest.mark.slow
@torch.inference_mode()
def test_logits_of_the_real_encoder_match_transformers():
    if not ENCODER.is_dir():
        pytest.skip(f"{ENCODER} does not exist: it is not part of this repository")
    model = build_model(ModelConfig(pretrained=str(ENCODER), freeze_encoder=True), PAPER_EMOTIONS, seed=0)
    clips = waves((30_000, 50_000))
    stock = model.network(transformers_features(clips, seconds=30)).logits
    torch.testing.assert_close(model(*pad_batch(clips)).logits_BC, stock, atol=1e-4, rtol=0)
