"""Worker groups reserve the CPUs and GPUs of their configuration, and communicate over the backend of their device."""

import pytest

from lakd_ray.config import load_config
from lakd_ray.launch import driver
from lakd_ray.launch.worker import TrainingTask
from lakd_ray.runs.graph import build_run_graph


@pytest.mark.parametrize(
    ("settings", "use_gpu", "resources", "backend"),
    [
        (["train.gpu=false"], False, {"CPU": 4}, "gloo"),
        (["train.gpu=true"], True, {"CPU": 5, "GPU": 1.0}, "cpu:gloo,cuda:nccl"),
        (["train.gpu=true", "train.gpus_per_worker=0.25"], True, {"CPU": 5, "GPU": 0.25}, "cpu:gloo,cuda:nccl"),
    ],
)
def test_worker_groups_reserve_what_is_configured(settings, use_gpu, resources, backend, monkeypatch, tmp_path):
    config = load_config("demo", [f"storage={tmp_path}", "train.workers=1", "train.cpus_per_worker=3", *settings])
    monkeypatch.setattr(driver, "TorchTrainer", lambda *_, **arguments: arguments)
    trainer = driver._build_trainer(None, [TrainingTask(config, build_run_graph(config).teachers[0])], "teachers")
    assert trainer["scaling_config"].use_gpu is use_gpu
    assert trainer["scaling_config"].resources_per_worker == resources
    assert trainer["torch_config"].backend == backend
