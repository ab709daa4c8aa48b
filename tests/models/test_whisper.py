"""Whisper's encoder: its spectrogram and its answers are transformers' own, whatever the batch."""

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
LENGTHS = (16_000, 4_000, 9_999)  # a second is all that it hears


def whisper(seed: int = 0, **changes: Any) -> EmotionClassifier:
    model = ModelConfig(config=SHAPE, freeze_feature_encoder=False, **changes)
    return build_model(model, PAPER_EMOTIONS, seed=seed, languages=tiny.LANGUAGES).eval()


def waves(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def theirs(clips: list[torch.Tensor], mels: int = 80, seconds: int = 1) -> torch.Tensor:
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds)
    found: torch.Tensor = extractor([np.asarray(clip) for clip in clips], sampling_rate=16_000, return_tensors="pt")[
        "input_features"
    ]
    return found


@torch.inference_mode()
def test_the_spectrogram_is_transformers_own():
    clips = [*waves(), torch.zeros(8_000), 0.1 * torch.sin(torch.arange(20_000) / 9)]  # the last one is too long
    found_BSM = whisper().extract_features(*pad_batch(clips))
    torch.testing.assert_close(found_BSM.transpose(1, 2), theirs(clips), atol=2e-4, rtol=0)


@pytest.mark.parametrize("aware", [None, tiny.AWARE], ids=["plain", "language-aware"])
@torch.inference_mode()
def test_an_answer_does_not_depend_on_the_batch(aware: LanguageAwareHeadConfig | None):
    model, clips = whisper(language_aware=aware), waves()
    together = model(*pad_batch(clips)).logits_BC
    alone = torch.cat([model(*pad_batch([clip])).logits_BC for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (alone[0] - alone[1]).abs().max() > 1e-4


@torch.inference_mode()
def test_transformers_loads_what_is_saved_and_answers_alike(tmp_path: Path):
    model, clips = whisper(), waves()
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "saved"), model.network, tiny.card(), scratch=tmp_path / "scratch")
    stock = AutoModelForAudioClassification.from_pretrained(tmp_path / "saved").eval()
    extractor = WhisperFeatureExtractor.from_pretrained(tmp_path / "saved")
    features = extractor([clip.numpy() for clip in clips], sampling_rate=16_000, return_tensors="pt").input_features
    again, _ = load_checkpoint(str(tmp_path / "saved"))
    expected = model(*pad_batch(clips)).logits_BC
    torch.testing.assert_close(again(*pad_batch(clips)).logits_BC, expected)
    torch.testing.assert_close(stock(features).logits, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_transformers_answers_alike_with_what_is_saved_beside_a_language_aware_student(tmp_path: Path):
    model, clips = whisper(language_aware=tiny.AWARE), waves()
    languages_B = torch.tensor([0, 1, 2])
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "saved"), model.network, tiny.card(), scratch=tmp_path / "scratch")
    stock = AutoModelForAudioClassification.from_pretrained(tmp_path / "saved").eval()
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "saved")
    inputs = extractor([clip.numpy() for clip in clips], sampling_rate=16_000, padding=True, return_tensors="pt")
    expected = model(*pad_batch(clips), languages_B).logits_BC
    torch.testing.assert_close(stock(**inputs, language_ids=languages_B).logits, expected, atol=1e-6, rtol=0)


def test_positions_are_not_trained_wherever_it_starts_from(tmp_path: Path):
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "saved"), whisper().network, tiny.card(), scratch=tmp_path / "scratch")
    loaded = build_model(
        ModelConfig(pretrained=str(tmp_path / "saved"), freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0
    )
    for model in (whisper(), loaded):
        fixed = [name for name, each in model.named_parameters() if not each.requires_grad]
        assert fixed == ["network.encoder.embed_positions.weight"]


def test_a_part_of_a_second_is_refused():
    with pytest.raises(ConfigError, match="`max_source_positions` is 75, expected a multiple of 50"):
        build_model(
            ModelConfig(config=SHAPE | {"max_source_positions": 75}, freeze_feature_encoder=False), ["a"], seed=0
        )


def test_own_frames():
    lengths_B = torch.tensor([1, 320, 321, 16_000, 99_999])
    assert whisper().count_frames(lengths_B).tolist() == [1, 1, 2, 50, 50]


@pytest.mark.slow
@torch.inference_mode()
def test_the_real_encoder_answers_as_transformers_own():
    if not ENCODER.is_dir():
        pytest.skip(f"{ENCODER} is not here: it is not part of this repository")
    model = build_model(ModelConfig(pretrained=str(ENCODER), freeze_encoder=True), PAPER_EMOTIONS, seed=0)
    clips = waves((30_000, 50_000))
    stock = model.network(theirs(clips, seconds=30)).logits
    torch.testing.assert_close(model(*pad_batch(clips)).logits_BC, stock, atol=1e-4, rtol=0)
