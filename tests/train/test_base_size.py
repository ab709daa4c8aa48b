"""Test one optimizer step of the mtkd student at the size of wav2vec2-base, with DeepSpeed."""

import subprocess
import sys

import pytest

STEP = """
import os, sys, tempfile
os.environ.setdefault("LOCAL_RANK", "0")
import torch, torch.distributed as dist
from lakd_ray.config import DistillLossConfig, ModelConfig, OptimConfig, TrainConfig
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import build_model, pad_batch
from lakd_ray.train.engines import build_engine
from lakd_ray.train.step import Objective, TrainBatch, compute_losses

dist.init_process_group("gloo", init_method="file://" + tempfile.mkdtemp() + "/store", rank=0, world_size=1)
config = ModelConfig(config={"model_type": "wav2vec2"}, freeze_feature_encoder=False)
model = build_model(config, PAPER_EMOTIONS, seed=0)
count = sum(parameter.numel() for parameter in model.parameters())
assert 94e6 < count < 96e6, count  # wav2vec2-base has 94.4 million, and the head adds a few
optim = OptimConfig(lr=1e-4, warmup_ratio=0.0)
engine = build_engine(model, optim, TrainConfig(workers=1, zero_stage=1), total_steps=2)
before = model.network.classifier.weight.detach().clone()
wave_BT, lengths_B = pad_batch([torch.randn(32_000), torch.randn(24_000)])
batch = TrainBatch(wave_BT, lengths_B, torch.tensor([0, 3]), ["en", "fi"], torch.randn(2, 3, 4))
losses = compute_losses(engine.forward, batch, Objective(DistillLossConfig(), ["en", "fi", "fr"]))
engine.backward(losses.loss, 2)
engine.step()
assert torch.isfinite(losses.loss), losses
assert not torch.equal(before, model.network.classifier.weight.detach())
print("finished")
"""


@pytest.mark.slow
def test_a_student_of_base_size_trains_one_step() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "finished" in done.stdout
