"""A process computes on what Ray reserved for it or on what is configured, whatever GPUs are visible."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lakd_ray.devices import count_visible_gpus, is_architecture_supported, process_group_backend, select_device
from lakd_ray.errors import ConfigError, ResourceError


@pytest.fixture
def machine(monkeypatch):
    """Pretend that torch can use a number of GPUs, which `CUDA_VISIBLE_DEVICES` names."""

    def pretend(gpus: int, visible: str | None = None, major_versions: Sequence[int] = (9, 9, 9, 9)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
        devices = [SimpleNamespace(major=major, minor=0) for major in major_versions]
        monkeypatch.setattr(torch.cuda, "get_device_properties", devices.__getitem__)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return pretend


@pytest.fixture
def ray_process(monkeypatch):
    """Pretend that this is a process of Ray with reserved GPUs."""

    def pretend(*reserved: str, mode: int = 1) -> None:
        context = SimpleNamespace(
            worker=SimpleNamespace(mode=mode), get_accelerator_ids=lambda: {"GPU": list(reserved), "TPU": []}
        )
        ray = SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context, WORKER_MODE=1)
        monkeypatch.setitem(sys.modules, "ray", ray)

    return pretend


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))


@pytest.mark.parametrize(
    ("gpus", "configured", "device"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "cpu", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_outside_ray_the_configuration_decides(machine, gpus, configured, device):
    machine(gpus)
    assert select_device(configured) == torch.device(device)


@pytest.mark.parametrize(("gpus", "configured"), [(0, "cuda"), (2, "cuda:2")])
def test_a_configured_gpu_that_is_missing_is_an_error(machine, gpus, configured):
    machine(gpus)
    with pytest.raises(ResourceError, match=rf"device {configured}: torch .* can use {gpus} GPUs"):
        select_device(configured)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_an_unknown_device_is_an_error(name):
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
        select_device(name)


def test_a_ray_process_without_a_reservation_uses_the_cpu_though_gpus_are_visible(machine, ray_process):
    machine(2)
    ray_process()
    assert select_device() == select_device("cpu") == torch.device("cpu")
    with pytest.raises(ResourceError, match="Ray reserved 0 GPUs for this process"):
        select_device("cuda")


@pytest.mark.parametrize(
    ("gpus", "visible", "reserved", "device"),
    [
        (1, "3", ["3"], "cuda:0"),  # as Ray sets it for a task or actor
        (4, "0,1,2,3", ["2"], "cuda:2"),  # as Ray Train sets it for the workers of a node
        (4, None, ["2"], "cuda:2"),  # RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES=1
        (2, "GPU-a,GPU-b", ["GPU-b"], "cuda:1"),
        (2, "5,7", ["7", "5"], "cuda:0"),
    ],
)
def test_a_ray_process_uses_the_gpu_that_it_reserved(machine, ray_process, gpus, visible, reserved, device):
    machine(gpus, visible)
    ray_process(*reserved)
    assert select_device() == select_device("cuda") == torch.device(device)
    assert select_device("cpu") == torch.device("cpu")


def test_a_reserved_gpu_that_torch_cannot_use_is_an_error(machine, ray_process):
    ray_process("0")
    machine(0)
    with pytest.raises(ResourceError, match=r"Ray reserved GPU 0 .* cannot use it"):
        select_device()
    machine(1, "1")
    with pytest.raises(ResourceError, match="GPU 0 is not in CUDA_VISIBLE_DEVICES=1"):
        select_device()


@pytest.mark.parametrize(("versions", "usable"), [((9, 8), 2), ((9, 7), 1), ((7, 9), 0)])
def test_a_gpu_for_which_torch_was_not_built_is_not_used(machine, ray_process, versions, usable):
    machine(2, major_versions=versions)
    assert count_visible_gpus() == usable
    assert select_device() == torch.device("cuda:0" if usable else "cpu")
    ray_process("1")
    if usable == 2:
        assert select_device() == torch.device("cuda:1")
        return
    with pytest.raises(ResourceError, match=r"Ray reserved GPU 1 .* cannot use it. `lakd doctor` shows the cause"):
        select_device()


@pytest.mark.parametrize(
    ("capability", "architectures", "supported"),
    [
        ((8, 9), ["sm_75", "sm_80"], True),  # machine code of the same major version
        ((7, 0), ["sm_75", "sm_80"], False),
        ((12, 1), ["sm_90", "sm_120"], True),
        ((10, 3), ["sm_90", "sm_120"], False),
        ((10, 3), ["sm_90", "compute_90"], True),  # compiled when it is loaded
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
    ],
)
def test_architectures(capability, architectures, supported):
    assert is_architecture_supported(*capability, architectures) == supported


def test_the_driver_of_a_cluster_is_no_worker(machine, ray_process):
    machine(1)
    ray_process(mode=0)
    assert select_device() == torch.device("cuda:0")


def test_the_backend_of_a_process_group_has_gloo_for_objects():
    assert process_group_backend("cpu") == "gloo"
    assert process_group_backend("cuda") == "cpu:gloo,cuda:nccl"


PROCESSES = """
import logging, os, ray
from lakd_ray.devices import select_device

class Replica:
    def device(self):
        from lakd_ray.devices import select_device
        return str(select_device())

ray.init(address="local", num_cpus=1, num_gpus=2, include_dashboard=False, object_store_memory=100_000_000,
         logging_level=logging.ERROR)
replicas = [ray.remote(num_cpus=0, num_gpus=gpus)(Replica).remote() for gpus in (0.5, 0.5, 1, 0)]
print(*ray.get([replica.device.remote() for replica in replicas]), select_device())
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("override", ["0", "1"])
def test_actors_of_ray_use_what_they_reserve(override, tmp_path):
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parent / "support" / "pretended_gpu"),
        "CUDA_VISIBLE_DEVICES": "98,99",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": override,
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROCESSES],
        env=environment, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.stdout.split() == ["cuda:0", "cuda:0", "cuda:0", "cpu", "cuda:0"]
