"""The language-aware student: what depends on what, where gradients flow, and that transformers loads it."""

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
    """In eval mode, its languages far apart, so that what depends on them shows."""
    model = tiny.aware(**STYLES[style], **changes).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.network.head.named_parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator) * (parameter.ndim > 1)
        assert name
    return model


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("languages", [[0, 1, 2, UNKNOWN], [IDENTIFY_LANGUAGE] * 4], ids=["given", "identified"])
@torch.inference_mode()
def test_an_answer_does_not_depend_on_the_batch(style, languages):
    model, clips = student(style), waves()
    languages_B = torch.tensor(languages)
    alone = [model(*pad_batch([clip]), languages_B[place : place + 1]) for place, clip in enumerate(clips)]
    for chosen in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0], [2, 2, 0]):
        wave_BT, lengths_B = pad_batch([clips[place] for place in chosen])
        wave_BT[lengths_B.argmin(), int(lengths_B.min()) :] = 7.0  # what lies beyond does not matter
        together = model(wave_BT, lengths_B, languages_B[chosen])
        for place, name in enumerate(ClassifierOutput._fields):
            expected = torch.cat([alone[index][place] for index in chosen])
            torch.testing.assert_close(together[place], expected, atol=1e-5, rtol=0, msg=name)


@torch.inference_mode()
def test_the_answer_goes_by_the_language():
    model, clips = student(), waves((9_000,))
    answers = [model(*pad_batch(clips), torch.tensor([place])) for place in range(UNKNOWN + 1)]
    for place, one in enumerate(answers):
        for other in answers[place + 1 :]:
            assert (one.logits_BC - other.logits_BC).abs().max() > 1e-3
            assert (one.teacher_scores_BK - other.teacher_scores_BK).abs().max() > 1e-3
        assert torch.equal(one.language_logits_BL, answers[0].language_logits_BL)  # what is heard is not what is said
    heard = int(answers[0].language_logits_BL.argmax())
    assert torch.equal(model(*pad_batch(clips)).logits_BC, answers[heard].logits_BC)
    assert torch.equal(model(*pad_batch(clips), torch.tensor([IDENTIFY_LANGUAGE])).logits_BC, answers[heard].logits_BC)


def test_names_of_languages():
    assert tiny.aware().encode_languages(["fr", None, "sv", "en"]).tolist() == [2, IDENTIFY_LANGUAGE, UNKNOWN, 0]
    assert tiny.model().languages == ()


def test_in_training_some_languages_are_hidden():
    model = student(**tiny.STILL).train()
    hidden = (
        model.network.head._resolve_languages(torch.zeros(20_000, dtype=torch.long), torch.zeros(20_000, 3)) == UNKNOWN
    )
    assert float(hidden.float().mean()) == pytest.approx(0.2, abs=0.01)
    wave_BT, lengths_B = pad_batch(waves())
    languages_B = torch.tensor([0, 1, 2, 0])
    drawn = []
    for _ in range(2):
        torch.manual_seed(4)
        drawn.append(model(wave_BT, lengths_B, languages_B).logits_BC)
    assert torch.equal(*drawn)


def reached(model: EmotionClassifier, loss: Tensor) -> set[str]:
    """Parts of the network that a loss has a gradient for."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    with_gradient = [
        name for name, each in model.network.named_parameters() if each.grad is not None and each.grad.any()
    ]
    return {name.split(".")[1] if name.startswith("head.") else "encoder" for name in with_gradient}


ANSWER = {"encoder", "language", "frame_query", "frame_key", "layer_scores", "projector", "classifier"}


def test_where_gradients_flow():
    model = student(**tiny.STILL).train()
    batch = (*pad_batch(waves()), torch.tensor([0, 1, 2, 0]))
    labels_B, teachers_BKC = (
        torch.tensor([0, 1, 2, 3]),
        torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1)),
    )
    assert reached(model, cross_entropy(model(*batch).logits_BC, labels_B)) == ANSWER
    assert reached(model, cross_entropy(model(*batch).language_logits_BL, batch[2])) == {"identifier"}
    mixture = mixture_losses(model(*batch).teacher_scores_BK, teachers_BKC, labels_B, entropy_weight=0.1).sum()
    assert reached(model, mixture) == {"teacher_query", "teacher_keys", "language"}
    whole = TrainBatch(batch[0], batch[1], labels_B, ["en", "fi", "fr", "en"], teachers_BKC, batch[2])
    parts = compute_losses(
        model,
        whole,
        Objective(DistillLossConfig(weighting="attention", lam=0.5), ("en", "fi", "fr"), language_id_loss_weight=0.1),
    )
    assert reached(model, parts.ce + parts.kl) == ANSWER  # the weights are detached in the distillation term
    parts = compute_losses(
        model,
        whole,
        Objective(DistillLossConfig(weighting="attention", lam=0.5), ("en", "fi", "fr"), language_id_loss_weight=0.1),
    )
    assert reached(model, parts.loss) == ANSWER | {"identifier", "teacher_query", "teacher_keys"}


def test_the_loss_is_the_sum_of_its_parts():
    model = student(**tiny.STILL)
    whole = TrainBatch(
        *pad_batch(waves()),
        torch.tensor([0, 1, 2, 3]),
        ["en", "fi", "fr", "en"],
        torch.ones(4, 3, 4),
        torch.tensor([0, 1, 2, 0]),
    )
    loss = DistillLossConfig(weighting="attention", lam=0.25, attention_loss_weight=2.0)
    parts = compute_losses(model, whole, Objective(loss, tiny.LANGUAGES, language_id_loss_weight=0.3))
    expected = 0.75 * parts.ce + 0.25 * parts.kl + 0.3 * parts.language + 2.0 * parts.attention
    torch.testing.assert_close(parts.loss, expected)
    assert parts.language > 0 and parts.attention != 0


def test_attention_learns_whom_to_trust():
    """One teacher is right in each language; the scores find it, although the student itself learns nothing here."""
    model = student(**tiny.STILL)
    head = model.network.head
    optimizer = torch.optim.Adam([*head.teacher_query.parameters(), *head.teacher_keys.parameters()], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    clips = pad_batch([0.1 * torch.randn(4_000, generator=generator) for _ in range(12)])
    languages_B, labels_B = torch.arange(12) % 3, torch.arange(12) % 4
    right_BKC = 3.0 * torch.nn.functional.one_hot(labels_B, 4)[:, None].expand(-1, 3, -1)
    knows_BK1 = torch.nn.functional.one_hot(languages_B, 3).unsqueeze(-1)
    teachers_BKC = torch.where(knows_BK1 == 1, right_BKC, right_BKC.roll(1, dims=-1)).float()
    for _ in range(60):
        optimizer.zero_grad()
        mixture_losses(
            model(*clips, languages_B).teacher_scores_BK, teachers_BKC, labels_B, entropy_weight=0.0
        ).mean().backward()
        optimizer.step()
    assert torch.equal(model(*clips, languages_B).teacher_scores_BK.argmax(dim=-1), languages_B)


def test_transformers_loads_what_is_saved_and_answers_alike(tmp_path: Path):
    model = student()
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "saved"), model.network, tiny.card(tiny.LANGUAGES), scratch=tmp_path / "scratch")
    again, card = load_checkpoint(str(tmp_path / "saved"))
    theirs = AutoModelForAudioClassification.from_pretrained(tmp_path / "saved").eval()
    assert type(theirs).__module__ == "lakd_ray.models.language_aware"
    assert again.languages == tiny.LANGUAGES and card.emotions == PAPER_EMOTIONS
    wave_BT, lengths_B = pad_batch(waves())
    mask_BT = torch.arange(wave_BT.shape[1]) < lengths_B.unsqueeze(1)
    for languages_B in (torch.tensor([0, 1, 2, UNKNOWN]), None):
        with torch.inference_mode():
            expected = model(wave_BT, lengths_B, languages_B).logits_BC
            torch.testing.assert_close(again(wave_BT, lengths_B, languages_B).logits_BC, expected)
            found = theirs(wave_BT, attention_mask=mask_BT, language_ids=languages_B, labels=torch.tensor([0, 1, 2, 3]))
        torch.testing.assert_close(found.logits, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.loss, cross_entropy(expected, torch.tensor([0, 1, 2, 3])))


def test_a_pretrained_encoder_is_kept_and_may_be_frozen(tmp_path: Path):
    plain = tiny.checkpoint(tmp_path, seed=7)
    source = tiny.config(aware=tiny.AWARE).model_copy(
        update={"config": None, "pretrained": plain, "freeze_feature_encoder": True}
    )
    model = build_model(source, PAPER_EMOTIONS, seed=0, languages=tiny.LANGUAGES)
    kept, _ = load_checkpoint(plain)
    for name, weight in kept.network.wav2vec2.state_dict().items():
        assert torch.equal(model.network.encoder.state_dict()[name], weight), name
    assert not any(each.requires_grad for each in model.frontend.parameters())
    assert model.network.head.teacher_keys is None  # no attention without teachers that it is to weigh


@torch.inference_mode()
def test_a_fresh_head_goes_by_the_language_and_prefers_no_teacher():
    """At the rates of fine-tuning a head that starts blind to the language stays so."""
    torch.manual_seed(0)
    config = LanguageAwareConfig(tiny.ARCHITECTURE | {"hidden_size": 128}, tiny.LANGUAGES, num_teachers=3, num_labels=4)
    head = LanguageAwareForAudioClassification(config).head.eval()
    hidden, frames_B = [torch.randn(20, 6, 128) for _ in range(3)], torch.full((20,), 6)
    answers = [head(hidden, frames_B, torch.full((20,), place)) for place in range(UNKNOWN + 1)]
    utterances = answers[0].logits_BC.std(dim=0).mean()
    for place, one in enumerate(answers):
        assert not one.teacher_scores_BK.any()  # every weight is 1 / K
        for other in answers[place + 1 :]:
            assert (one.logits_BC - other.logits_BC).std() > 0.05 * utterances
    for embedding in (head.language, head.teacher_keys):
        assert float(embedding.weight.std()) == pytest.approx(1.0, abs=0.15)


def test_a_language_aware_checkpoint_is_no_start(tmp_path: Path):
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "saved"), student().network, tiny.card(), scratch=tmp_path / "scratch")
    source = tiny.config().model_copy(update={"config": None, "pretrained": str(tmp_path / "saved")})
    with pytest.raises(ConfigError, match="has a language-aware head; start from one with a plain head"):
        build_model(source, PAPER_EMOTIONS, seed=0)


def test_its_head_starts_as_large_as_the_backbones_own():
    for spread in (0.02, 0.2):
        head = tiny.aware(initializer_range=spread).network.head
        for weight in (head.classifier.weight, head.projector.weight, head.identifier[0].weight):
            assert float(weight.detach().std()) == pytest.approx(spread, rel=0.15)


def test_what_differs_in_deviation_alone_is_told_apart():
    """As languages are whose sounds have one mean: three kinds of noise around it."""
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
    heard_B = head(fresh, torch.full((30,), 40), languages_B).language_logits_BL.argmax(dim=-1)
    assert float((heard_B == languages_B).float().mean()) > 0.9


# Seeded student and synthetic waves, one language each. After a change that is meant to change them, print them anew:
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
        outputs = student(seed=42, **tiny.STILL)(*pad_batch(clips), torch.tensor([1, UNKNOWN]))
    return {
        name: [[round(number, 4) for number in row] for row in value.tolist()]
        for name, value in outputs._asdict().items()
    }


def test_golden_numbers():
    found = golden()
    assert found.keys() == GOLDEN.keys()
    for name, value in found.items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(GOLDEN[name]), atol=1e-3, rtol=0, msg=name)


if __name__ == "__main__":
    for name, value in golden().items():
        print(f"    {name!r}: {value},".replace("'", '"'))
