"""Test the language-aware student: batch independence, effect of the language, gradients, loading by transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models as tiny
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForAudioClassification

from lakd_ray.config import DistillLossConfig
from lakd_ray.distill import mixture_losses
from lakd_ray.errors import ConfigError
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import (
    IDENTIFY_LANGUAGE,
    ClassifierOutput,
    EmotionClassifier,
    build_model,
    load_checkpoint,
    pad_batch,
    save_checkpoint,
)
from lakd_ray.models.language_aware import LanguageAwareConfig, LanguageAwareForAudioClassification
from lakd_ray.train.step import Objective, TrainBatch, compute_losses

STYLES: dict[str, dict[str, Any]] = {
    "group": {"feat_extract_norm": "group"},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
LENGTHS = (16_000, 2_500, 9_999, 4_321)
UNKNOWN = len(tiny.LANGUAGES)


def waves(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def student(style: str = "group", **changes: Any) -> EmotionClassifier:
    """Build a student in eval mode, with large weights in the head, so that the language has a visible effect."""
    model = tiny.aware(**STYLES[style], **changes).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.network.head.named_parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator) * (parameter.ndim > 1)
        assert name
    return model


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("languages", [[0, 1, 2, UNKNOWN], [IDENTIFY_LANGUAGE] * 4], ids=["given", "identified"])
@torch.inference_mode()
def test_outputs_do_not_depend_on_the_batch(style, languages):
    model, clips = student(style), waves()
    languages_B = torch.tensor(languages)
    unbatched = [model(*pad_batch([clip]), languages_B[index : index + 1]) for index, clip in enumerate(clips)]
    for indices in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0], [2, 2, 0]):
        wave_BT, lengths_B = pad_batch([clips[index] for index in indices])
        wave_BT[lengths_B.argmin(), int(lengths_B.min()) :] = 7.0  # values in the padding have no effect
        batched = model(wave_BT, lengths_B, languages_B[indices])
        for field, name in enumerate(ClassifierOutput._fields):
            expected = torch.cat([unbatched[index][field] for index in indices])
            torch.testing.assert_close(batched[field], expected, atol=1e-5, rtol=0, msg=name)


@torch.inference_mode()
def test_outputs_depend_on_the_language():
    model, clips = student(), waves((9_000,))
    outputs = [model(*pad_batch(clips), torch.tensor([language])) for language in range(UNKNOWN + 1)]
    for language, output in enumerate(outputs):
        for other in outputs[language + 1 :]:
            assert (output.logits_BC - other.logits_BC).abs().max() > 1e-3
            assert (output.teacher_scores_BK - other.teacher_scores_BK).abs().max() > 1e-3
        # Identification does not depend on the given language.
        assert torch.equal(output.language_logits_BL, outputs[0].language_logits_BL)
    identified = int(outputs[0].language_logits_BL.argmax())
    assert torch.equal(model(*pad_batch(clips)).logits_BC, outputs[identified].logits_BC)
    assert torch.equal(
        model(*pad_batch(clips), torch.tensor([IDENTIFY_LANGUAGE])).logits_BC, outputs[identified].logits_BC
    )


def test_encoding_of_language_codes():
    assert tiny.aware().encode_languages(["fr", None, "sv", "en"]).tolist() == [2, IDENTIFY_LANGUAGE, UNKNOWN, 0]
    assert tiny.model().languages == ()


def test_language_dropout_hides_some_languages_in_training():
    model = student(**tiny.DETERMINISTIC).train()
    is_unknown = (
        model.network.head._resolve_languages(torch.zeros(20_000, dtype=torch.long), torch.zeros(20_000, 3)) == UNKNOWN
    )
    assert float(is_unknown.float().mean()) == pytest.approx(0.2, abs=0.01)
    wave_BT, lengths_B = pad_batch(waves())
    languages_B = torch.tensor([0, 1, 2, 0])
    repeated = []
    for _ in range(2):
        torch.manual_seed(4)
        repeated.append(model(wave_BT, lengths_B, languages_B).logits_BC)
    assert torch.equal(*repeated)


def parts_with_gradient(model: EmotionClassifier, loss: Tensor) -> set[str]:
    """Return the parts of the network that get a gradient of the loss."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    with_gradient = [
        name for name, each in model.network.named_parameters() if each.grad is not None and each.grad.any()
    ]
    return {name.split(".")[1] if name.startswith("head.") else "encoder" for name in with_gradient}


CLASSIFIER_PARTS = {"encoder", "language", "frame_query", "frame_key", "layer_scores", "projector", "classifier"}


def test_each_loss_has_gradients_only_in_its_parts():
    model = student(**tiny.DETERMINISTIC).train()
    batch = (*pad_batch(waves()), torch.tensor([0, 1, 2, 0]))
    labels_B, teachers_BKC = (
        torch.tensor([0, 1, 2, 3]),
        torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1)),
    )
    assert parts_with_gradient(model, cross_entropy(model(*batch).logits_BC, labels_B)) == CLASSIFIER_PARTS
    assert parts_with_gradient(model, cross_entropy(model(*batch).language_logits_BL, batch[2])) == {"identifier"}
    mixture = mixture_losses(model(*batch).teacher_scores_BK, teachers_BKC, labels_B, entropy_weight=0.1).sum()
    assert parts_with_gradient(model, mixture) == {"teacher_query", "teacher_keys", "language"}
    train_batch = TrainBatch(batch[0], batch[1], labels_B, ["en", "fi", "fr", "en"], teachers_BKC, batch[2])
    losses = compute_losses(
        model,
        train_batch,
        Objective(DistillLossConfig(weighting="attention", lam=0.5), ("en", "fi", "fr"), language_id_loss_weight=0.1),
    )
    assert (
        parts_with_gradient(model, losses.ce + losses.kl) == CLASSIFIER_PARTS
    )  # the teacher weights are detached in the distillation term
    losses = compute_losses(
        model,
        train_batch,
        Objective(DistillLossConfig(weighting="attention", lam=0.5), ("en", "fi", "fr"), language_id_loss_weight=0.1),
    )
    assert parts_with_gradient(model, losses.loss) == CLASSIFIER_PARTS | {"identifier", "teacher_query", "teacher_keys"}


def test_the_loss_is_the_weighted_sum_of_its_parts():
    model = student(**tiny.DETERMINISTIC)
    train_batch = TrainBatch(
        *pad_batch(waves()),
        torch.tensor([0, 1, 2, 3]),
        ["en", "fi", "fr", "en"],
        torch.ones(4, 3, 4),
        torch.tensor([0, 1, 2, 0]),
    )
    loss = DistillLossConfig(weighting="attention", lam=0.25, attention_loss_weight=2.0)
    losses = compute_losses(model, train_batch, Objective(loss, tiny.LANGUAGES, language_id_loss_weight=0.3))
    expected = 0.75 * losses.ce + 0.25 * losses.kl + 0.3 * losses.language + 2.0 * losses.attention
    torch.testing.assert_close(losses.loss, expected)
    assert losses.language > 0 and losses.attention != 0


def test_attention_learns_the_correct_teacher_of_each_language():
    """One teacher is correct in each language; the scores learn it without training the rest of the student."""
    model = student(**tiny.DETERMINISTIC)
    head = model.network.head
    optimizer = torch.optim.Adam([*head.teacher_query.parameters(), *head.teacher_keys.parameters()], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    clips = pad_batch([0.1 * torch.randn(4_000, generator=generator) for _ in range(12)])
    languages_B, labels_B = torch.arange(12) % 3, torch.arange(12) % 4
    correct_BKC = 3.0 * torch.nn.functional.one_hot(labels_B, 4)[:, None].expand(-1, 3, -1)
    is_correct_BK1 = torch.nn.functional.one_hot(languages_B, 3).unsqueeze(-1)
    teachers_BKC = torch.where(is_correct_BK1 == 1, correct_BKC, correct_BKC.roll(1, dims=-1)).float()
    for _ in range(60):
        optimizer.zero_grad()
        mixture_losses(
            model(*clips, languages_B).teacher_scores_BK, teachers_BKC, labels_B, entropy_weight=0.0
        ).mean().backward()
        optimizer.step()
    assert torch.equal(model(*clips, languages_B).teacher_scores_BK.argmax(dim=-1), languages_B)


def test_transformers_loads_a_checkpoint_and_gives_the_same_logits(tmp_path: Path):
    model = student()
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "saved"), model.network, tiny.card(tiny.LANGUAGES), scratch=tmp_path / "scratch")
    loaded, metadata = load_checkpoint(str(tmp_path / "saved"))
    stock = AutoModelForAudioClassification.from_pretrained(tmp_path / "saved").eval()
    assert type(stock).__module__ == "lakd_ray.models.language_aware"
    assert loaded.languages == tiny.LANGUAGES and metadata.emotions == PAPER_EMOTIONS
    wave_BT, lengths_B = pad_batch(waves())
    mask_BT = torch.arange(wave_BT.shape[1]) < lengths_B.unsqueeze(1)
    for languages_B in (torch.tensor([0, 1, 2, UNKNOWN]), None):
        with torch.inference_mode():
            expected = model(wave_BT, lengths_B, languages_B).logits_BC
            torch.testing.assert_close(loaded(wave_BT, lengths_B, languages_B).logits_BC, expected)
            outputs = stock(
                wave_BT, attention_mask=mask_BT, language_ids=languages_B, labels=torch.tensor([0, 1, 2, 3])
            )
        torch.testing.assert_close(outputs.logits, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(outputs.loss, cross_entropy(expected, torch.tensor([0, 1, 2, 3])))


def test_a_pretrained_encoder_is_unchanged_and_can_be_frozen(tmp_path: Path):
    plain = tiny.checkpoint(tmp_path, seed=7)
    source = tiny.config(aware=tiny.AWARE).model_copy(
        update={"config": None, "pretrained": plain, "freeze_feature_encoder": True}
    )
    model = build_model(source, PAPER_EMOTIONS, seed=0, languages=tiny.LANGUAGES)
    original, _ = load_checkpoint(plain)
    for name, weight in original.network.wav2vec2.state_dict().items():
        assert torch.equal(model.network.encoder.state_dict()[name], weight), name
    assert not any(weight.requires_grad for weight in model.frontend.parameters())
    assert model.network.head.teacher_keys is None  # no attention without teachers


@torch.inference_mode()
def test_a_new_head_depends_on_the_language_and_prefers_no_teacher():
    """At fine-tuning rates a head that initially ignores the language keeps ignoring it."""
    torch.manual_seed(0)
    config = LanguageAwareConfig(tiny.ARCHITECTURE | {"hidden_size": 128}, tiny.LANGUAGES, num_teachers=3, num_labels=4)
    head = LanguageAwareForAudioClassification(config).head.eval()
    hidden, num_frames_B = [torch.randn(20, 6, 128) for _ in range(3)], torch.full((20,), 6)
    outputs = [head(hidden, num_frames_B, torch.full((20,), language)) for language in range(UNKNOWN + 1)]
    utterance_std = outputs[0].logits_BC.std(dim=0).mean()
    for language, output in enumerate(outputs):
        assert not output.teacher_scores_BK.any()  # every weight is 1 / K
        for other in outputs[language + 1 :]:
            assert (output.logits_BC - other.logits_BC).std() > 0.05 * utterance_std
    for embedding in (head.language, head.teacher_keys):
        assert float(embedding.weight.std()) == pytest.approx(1.0, abs=0.15)


def test_a_language_aware_checkpoint_cannot_be_pretrained(tmp_path: Path):
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "saved"), student().network, tiny.card(), scratch=tmp_path / "scratch")
    source = tiny.config().model_copy(update={"config": None, "pretrained": str(tmp_path / "saved")})
    with pytest.raises(ConfigError, match="has a language-aware head: expected a model with a plain head"):
        build_model(source, PAPER_EMOTIONS, seed=0)


def test_the_head_is_initialized_with_the_deviation_of_the_backbone():
    for spread in (0.02, 0.2):
        head = tiny.aware(initializer_range=spread).network.head
        for weight in (head.classifier.weight, head.projector.weight, head.identifier[0].weight):
            assert float(weight.detach().std()) == pytest.approx(spread, rel=0.15)


def test_languages_that_differ_only_in_deviation_are_identified():
    """The three languages are noise of the same mean."""
    head, random = tiny.aware(initializer_range=0.2).network.head, torch.Generator().manual_seed(0)
    scale_31D = torch.rand(3, 1, 32, generator=random) * 2
    languages_B = torch.arange(30) % 3
    hidden = [torch.randn(30, 40, 32, generator=random) * scale_31D[languages_B] for _ in range(3)]
    optimizer = torch.optim.Adam(head.identifier.parameters(), lr=3e-3)
    for _ in range(100):
        loss = cross_entropy(head(hidden, torch.full((30,), 40), languages_B).language_logits_BL, languages_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = [torch.randn(30, 40, 32, generator=random) * scale_31D[languages_B] for _ in range(3)]
    identified_B = head(fresh, torch.full((30,), 40), languages_B).language_logits_BL.argmax(dim=-1)
    assert float((identified_B == languages_B).float().mean()) > 0.9


# Seeded student and synthetic waves, one language each. After an intended change of these values, print them again:
#     PYTHONPATH=tests:. .venv/bin/python tests/models/test_language_aware.py
GOLDEN: dict[str, list[list[float]]] = {
    "logits_BC": [[3.2246, 12.5775, -3.564, 1.0733], [-3.165, -3.2993, 2.1099, 1.0151]],
    "language_logits_BL": [[-0.8113, 0.5345, 0.15], [-3.7645, -0.566, -0.9396]],
    "teacher_scores_BK": [[-2.3814, 1.5922, -2.9563], [0.7463, -5.2753, -3.5938]],
}


def golden() -> dict[str, list[list[float]]]:
    ramp_T = torch.arange(8_000) / 16_000
    clips = [torch.sin(2 * torch.pi * pitch * ramp_T[:length]) for pitch, length in ((220, 8_000), (1_500, 5_000))]
    with torch.inference_mode():
        outputs = student(seed=42, **tiny.DETERMINISTIC)(*pad_batch(clips), torch.tensor([1, UNKNOWN]))
    return {
        name: [[round(number, 4) for number in row] for row in value.tolist()]
        for name, value in outputs._asdict().items()
    }


def test_golden_values():
    values = golden()
    assert values.keys() == GOLDEN.keys()
    for name, value in values.items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(GOLDEN[name]), atol=1e-3, rtol=0, msg=name)


if __name__ == "__main__":
    for name, value in golden().items():
        print(f"    {name!r}: {value},".replace("'", '"'))
