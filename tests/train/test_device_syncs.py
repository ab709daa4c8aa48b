"""A training step does not make the host wait for the GPU: with fake tensors, and on a GPU with the check of CUDA."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from packaging.version import Version
from support import tiny_models as tiny
from support.engine_steps import OPTIM, UTTERANCES, make_batch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lakd_ray.config import DistillLossConfig, LabelLossConfig, TrainConfig
from lakd_ray.distill import WEIGHTINGS, match_languages
from lakd_ray.models import EmotionClassifier, build_model
from lakd_ray.train.engines import build_engine
from lakd_ray.train.prefetch import load_batches
from lakd_ray.train.step import Objective, TrainBatch, compute_losses

FAMILIES = ("wav2vec2", "hubert", "wavlm", "unispeech-sat")
STYLES: dict[str, dict[str, Any]] = {
    "group": {"feat_extract_norm": "group"},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
MASKS = {"mask_time_prob": 0.3, "mask_time_length": 2, "mask_feature_prob": 0.3, "mask_feature_length": 4}
TEACHERS = ("en", "fi", "fr")
OBJECTIVES = {
    name: Objective(DistillLossConfig(weighting=name, standardize_logits=True), TEACHERS, LabelLossConfig(), 0.1)
    for name in WEIGHTINGS
}


class SyncError(Exception):
    """An operation makes the host wait for the device."""


class SyncDetector(TorchDispatchMode):
    """Raise on copies between host and GPU and on indices whose number the host must know; fake tensors raise on reads.

    A scalar on the CPU is an argument of the kernel and needs no copy.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)]
        if len({tensor.device.type for tensor in tensors if tensor.ndim}) > 1:
            raise SyncError(f"{func} copies between devices")
        if "index" in func.name() and any(index.dtype == torch.bool for index in indices_of(args)):
            raise SyncError(f"{func} counts the true elements of a mask")
        return result


def indices_of(args: Any) -> list[Tensor]:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
    return [index for index in indices if isinstance(index, Tensor)]


@pytest.fixture
def fake_mode() -> FakeTensorMode:
    """Make all tensors fake in the block of the mode: there is a GPU then, but there are no values to read."""
    return FakeTensorMode()


def full_batch(**masks: Any) -> TrainBatch:
    """Return a training batch with everything that a loader makes."""
    batch, model = make_batch(0), tiny.model(**masks)
    spec_augment = model.plan_spec_augment(
        model.count_frames(batch.lengths_B).tolist(), [(1, row) for row in range(UTTERANCES)]
    )
    same_language_BK = match_languages(batch.languages, TEACHERS)
    return replace(
        batch,
        same_language_BK=same_language_BK,
        spec_augment=spec_augment,
        label_weights_B=torch.rand(UTTERANCES),
    )


def on_fake_gpu(mode: FakeTensorMode, value: Any) -> Any:
    """Move a tensor, masks or a module."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            for name, weight in module.named_parameters(recurse=False):
                module._parameters[name] = nn.Parameter(on_fake_gpu(mode, weight), weight.requires_grad)
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = on_fake_gpu(mode, buffer)
        return value
    if isinstance(value, Tensor):
        fake = mode.from_tensor(value.detach())
        with mode:
            return fake.to("cuda")
    return type(value)(*(None if mask is None else on_fake_gpu(mode, mask) for mask in value))


def run_step(mode: FakeTensorMode, model: EmotionClassifier, batch: TrainBatch, *objectives: Objective) -> None:
    """Run forward pass and losses with fake tensors on a fake GPU."""
    on_fake_gpu(mode, model)
    fake_batch = batch._map(lambda value: on_fake_gpu(mode, value))
    with mode, SyncDetector():
        for objective in objectives:
            losses = compute_losses(model, fake_batch, objective)
            assert losses.to_tensor().device.type == "cuda"


READS: dict[str, Callable[[Any], Any]] = {
    "a value": lambda hidden_BFD: float(hidden_BFD.sum()),
    "a condition": lambda hidden_BFD: bool((hidden_BFD > 0).all()),
    "a list": lambda hidden_BFD: hidden_BFD[0, 0].tolist(),
    "positions": lambda hidden_BFD: hidden_BFD.nonzero(),
    "a copy of a list": lambda hidden_BFD: torch.tensor([1, 2, 3], device="cuda"),
    "a copy of the host's": lambda hidden_BFD: torch.ones(3).to("cuda"),
    "a copy to the host": lambda hidden_BFD: hidden_BFD.cpu(),
    "a mask as index": lambda hidden_BFD: hidden_BFD[hidden_BFD[..., 0] > 0],
}


@pytest.mark.parametrize("name", READS)
def test_the_detector_finds_reads_of_the_device(name: str, fake_mode: FakeTensorMode):
    with fake_mode:
        hidden_BFD = torch.empty(2, 20, 4, device="cuda")
        with SyncDetector(), pytest.raises((SyncError, DataDependentOutputException, DynamicOutputShapeException)):
            READS[name](hidden_BFD)


def test_the_detector_finds_the_masks_of_transformers(fake_mode: FakeTensorMode):
    encoder = on_fake_gpu(fake_mode, tiny.model(**MASKS)).backbone.encoder
    with fake_mode:
        hidden_BFD = torch.empty(2, 20, 32, device="cuda")
        with SyncDetector(), pytest.raises((SyncError, DataDependentOutputException)):
            encoder._mask_hidden_states(hidden_BFD)
        with SyncDetector(), pytest.raises((SyncError, DataDependentOutputException)):
            encoder.encoder(hidden_BFD, attention_mask=torch.ones(2, 20, dtype=torch.bool, device="cuda"))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_a_step_of_every_family_does_not_wait(family: str, style: str, fake_mode: FakeTensorMode):
    model = tiny.aware(model_type=family, **STYLES[style], **MASKS)
    run_step(fake_mode, model, full_batch(**MASKS), OBJECTIVES["attention"])


def test_no_weighting_waits(fake_mode: FakeTensorMode):
    label_loss = LabelLossConfig(focal_gamma=2.0, class_balance=0.9)
    compatible = DistillLossConfig(weighting="similarity", reference_compat=True)
    objectives = [*OBJECTIVES.values(), Objective(label_loss=label_loss), Objective(compatible, TEACHERS)]
    run_step(fake_mode, tiny.aware(**MASKS), full_batch(**MASKS), *objectives)
    run_step(fake_mode, tiny.model(**MASKS), full_batch(**MASKS), Objective())


def test_a_step_of_whisper_does_not_wait(fake_mode: FakeTensorMode):
    config = tiny.config().model_copy(update={"config": tiny.WHISPER})
    model = build_model(config, ("a", "b", "c", "d"), seed=0)
    filters = model.backbone._mel_filters(torch.device("cpu"))
    # The first step on a device copies them.
    model.backbone._mel_filters_by_device[torch.device("cuda:0")] = on_fake_gpu(fake_mode, filters)
    run_step(fake_mode, model, full_batch(), OBJECTIVES["similarity"])


def test_a_frozen_encoder_and_cached_features_do_not_wait(fake_mode: FakeTensorMode):
    batch = replace(full_batch(), spec_augment=None)
    features = replace(batch, inputs=torch.randn(UTTERANCES, 30, 16), lengths_B=torch.tensor([30, 20, 30, 9, 7, 1]))
    for inputs in (batch, features):
        model = EmotionClassifier(tiny.aware(teachers=0).network, freeze_encoder=True).train()
        run_step(fake_mode, model, inputs, OBJECTIVES["confidence"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.filterwarnings("ignore")  # torch warns that the check of synchronizations is a prototype
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_on_a_gpu_does_not_wait(
    family: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if family == "wavlm" and Version(transformers.__version__) < Version("5.20"):
        pytest.skip("transformers before 5.20 copies the positions of WavLM from the host")
    monkeypatch.setenv("LOCAL_RANK", "0")
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    model = tiny.aware(model_type=family, **MASKS)
    train = TrainConfig(gpu=True, engine="torch", precision=precision)
    engine = build_engine(model, OPTIM, train, total_steps=10)
    objective = OBJECTIVES["attention"]
    batches = load_batches(iter(range(6)), lambda _: full_batch(**MASKS), engine.device, engine.dtype)
    try:
        for number, batch in batches:
            if number == 3:  # the first steps load kernels and allocate memory
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            losses = compute_losses(engine.forward, batch, objective)
            engine.backward(losses.loss, UTTERANCES)
            engine.step()
            sums = losses.to_tensor()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        engine.close()
        dist.destroy_process_group()
    assert torch.isfinite(sums).all()
