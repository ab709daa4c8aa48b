"""Statistics over frames and classes are computed in fp32 in networks of half precision."""

import pytest
import torch
from support import tiny_models as tiny
from torch import Tensor, nn

from lakd_ray.config import DistillLossConfig
from lakd_ray.distill import WEIGHTINGS, WeightingInputs, distillation_loss, match_languages, teacher_weights
from lakd_ray.models import EmotionClassifier, build_model
from lakd_ray.models.external_teacher import ClassMapping
from lakd_ray.models.language_aware import pool_statistics
from lakd_ray.models.masking import length_mask
from lakd_ray.models.wav2vec2 import group_norm_with_mask

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
MINUTE = {"steps": 60 * 3200, "frames": 60 * 50}
"""Length of a minute of audio after the first convolution, and in frames."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the error relative to the exact values, after both have the precision of `found`."""
    rounded = expected.to(found.dtype).double()
    return float((found.double().cpu() - rounded).norm() / rounded.norm())


@DEVICES
@HALF
@torch.no_grad()
def test_the_group_norm_of_a_minute_is_exact(dtype: torch.dtype, device: str):
    norm = nn.GroupNorm(3, 3).double()
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 0.5, 2.0]).double(), torch.tensor([0.0, 1.0, -1.0]).double()
    scale_H1 = torch.tensor([[200.0], [1.0], [0.01]])
    hidden_BHT = (scale_H1 * (noise(2, 3, MINUTE["steps"]) + 3)).to(dtype)
    lengths = (MINUTE["steps"], 50_001)
    hidden_BHT[1, :, lengths[1] :] = torch.inf  # any value
    expected = [norm(row[None, :, :valid].double())[0] for row, valid in zip(hidden_BHT, lengths, strict=True)]
    found_BHT = group_norm_with_mask(
        hidden_BHT.to(device), torch.tensor(lengths, device=device), norm.to(device, dtype)
    )
    assert found_BHT.dtype == dtype
    for row, valid, exact_HT in zip(found_BHT, lengths, expected, strict=True):
        for channel in range(3):
            assert relative_error(row[channel, :valid], exact_HT[channel]) < 1e-3


@DEVICES
@HALF
def test_the_statistics_of_language_identification_are_exact(dtype: torch.dtype, device: str):
    frame_mask_BF = length_mask(MINUTE["frames"], torch.tensor([MINUTE["frames"], 700]))
    mean_D, deviation_D = torch.tensor([0.0, 10.0, 1.0, -3.0]), torch.tensor([1.0, 0.2, 0.05, 20.0])
    hidden_BYFD = (noise(2, 3, MINUTE["frames"], 4) * deviation_D + mean_D).to(dtype)
    hidden_BYFD = hidden_BYFD.masked_fill(~frame_mask_BF[:, None, :, None], 0)
    expected = []
    for row_YFD, mask_F in zip(hidden_BYFD.double(), frame_mask_BF, strict=True):
        valid_YFD = row_YFD[:, mask_F]
        expected.append(torch.cat([valid_YFD.mean(1), valid_YFD.std(1, correction=0)], dim=-1).mean(0))
    found_BD = pool_statistics(hidden_BYFD.to(device), frame_mask_BF.to(device))
    for column, exact_B in enumerate(torch.stack(expected).unbind(1)):
        assert found_BD.dtype == dtype and relative_error(found_BD[:, column], exact_B) < 1e-3


@HALF
@pytest.mark.parametrize("architecture", [tiny.ARCHITECTURE, tiny.WHISPER], ids=["wav2vec2", "whisper"])
def test_the_mean_over_frames_does_not_overflow(architecture: dict[str, object], dtype: torch.dtype):
    config = tiny.config().model_copy(update={"config": architecture})
    model = build_model(config, ("a", "b"), seed=0)
    hidden_BFD = (noise(1, MINUTE["frames"], 4) + 50).to(dtype)
    found_BD = model._pool(hidden_BFD, torch.tensor([MINUTE["frames"]]))
    assert found_BD.dtype == dtype and relative_error(found_BD, hidden_BFD.double().mean(1)) < 1e-3


@HALF
def test_the_attention_over_frames_is_exact(dtype: torch.dtype):
    head = tiny.aware().network.head.to(dtype)
    head.frame_key.weight.data *= 400  # scores of about 10, which bf16 rounds to 1/32
    hidden_BYFD, embedding_BE = noise(2, 3, 200, 32).to(dtype), noise(2, 8, seed=1).to(dtype)
    mask_BF = length_mask(200, torch.tensor([200, 60]))
    with torch.no_grad():
        query_BA, key_BYFA = head.frame_query(embedding_BE), head.frame_key(hidden_BYFD)
        found_BYD = head._pool_frames(hidden_BYFD, mask_BF, embedding_BE)
    scores_BYF = torch.einsum("ba,byfa->byf", query_BA.double(), key_BYFA.double()) / 8**0.5
    weights_BYF = scores_BYF.masked_fill(~mask_BF.unsqueeze(1), -torch.inf).softmax(-1)
    assert 5 < float(scores_BYF.abs().max()) < 100
    assert relative_error(found_BYD, torch.einsum("byf,byfd->byd", weights_BYF, hidden_BYFD.double())) < 3e-3


@HALF
@torch.no_grad()
def test_teacher_scores_and_layer_weights_are_exact(dtype: torch.dtype):
    head = tiny.aware().network.head.to(dtype)
    head.teacher_query.weight.data = 3 * noise(8, 40).to(dtype)
    utterance_BD, embedding_BE = noise(5, 32).to(dtype), noise(5, 8, seed=1).to(dtype)
    found_BK = head._score_teachers(utterance_BD, embedding_BE)
    query_BA = head.teacher_query(torch.cat([utterance_BD, embedding_BE], dim=-1)).double()
    assert found_BK.dtype == torch.float32
    assert relative_error(found_BK, query_BA @ head.teacher_keys.weight.double().T / 8**0.5) < 1e-5


@HALF
def test_losses_and_weights_of_half_precision_logits_are_those_of_fp32(dtype: torch.dtype):
    student_BC, teachers_BKC = 8 * noise(6, 4).to(dtype), 8 * noise(6, 3, 4, seed=1).to(dtype)
    labels_B, scores_BK = torch.arange(6) % 4, 4 * noise(6, 3, seed=2).to(dtype)
    same_language_BK = match_languages(("en", "fi", "fr") * 2, ("en", "fi", "fr"))
    for weighting in WEIGHTINGS:
        settings = DistillLossConfig(weighting=weighting, standardize_logits=True)
        weights = [
            teacher_weights(WeightingInputs(student, teachers, labels_B, settings, same_language_BK, scores))
            for student, teachers, scores in (
                (student_BC, teachers_BKC, scores_BK),
                (student_BC.float(), teachers_BKC.float(), scores_BK.float()),
            )
        ]
        assert weights[0].dtype == torch.float32 and torch.equal(*weights), weighting
    totals = [
        distillation_loss(student, teachers, labels_B, DistillLossConfig(weighting="similarity")).total_B
        for student, teachers in ((student_BC, teachers_BKC), (student_BC.float(), teachers_BKC.float()))
    ]
    assert totals[0].dtype == torch.float32 and torch.equal(*totals)
    assert ClassMapping([[0, 1], [2], [3]])(student_BC).dtype == torch.float32


@HALF
def test_autocast_does_not_reach_the_spectrogram(dtype: torch.dtype):
    model = build_model(tiny.config().model_copy(update={"config": tiny.WHISPER}), ("a", "b"), seed=0).eval()
    wave_BT = noise(1, 8_000) * torch.logspace(0, -4, 8_000)  # decays by 80 dB
    arguments = wave_BT, torch.tensor([8_000])
    with torch.autocast("cpu", dtype=dtype):
        found_BSM = model.extract_features(*arguments)
    assert torch.equal(found_BSM, model.extract_features(*arguments))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("autocast", [True, False])
@HALF
@torch.inference_mode()
def test_a_minute_of_audio_on_a_gpu_has_the_outputs_of_the_cpu(dtype: torch.dtype, autocast: bool):
    models: list[EmotionClassifier] = [tiny.model().eval(), tiny.aware().eval()]
    lengths_B = torch.tensor([960_000, 200_000])
    wave_BT = noise(2, 960_000) * length_mask(960_000, lengths_B)
    for model in models:
        expected = model(wave_BT, lengths_B)
        on_gpu = model.to("cuda", torch.float32 if autocast else dtype)
        with torch.autocast("cuda", dtype=dtype, enabled=autocast):
            found = on_gpu(wave_BT.cuda(), lengths_B.cuda())
        for exact, half in zip(expected, found, strict=True):
            if exact is not None:
                torch.testing.assert_close(half.float().cpu(), exact, atol=0.03, rtol=0.03)
