"""Test on a real GPU that Ray processes compute on the part of it that they reserve, and only there."""

from collections.abc import Iterator

import pytest
import ray
import torch
import torch.distributed as dist

from lakd_ray.cluster import ray_session, resolve_device
from lakd_ray.config import ClusterConfig, Experiment, load_config
from lakd_ray.devices import select_device
from lakd_ray.tune.trial import _init_single_process_group

pytestmark = [pytest.mark.gpu, pytest.mark.ray, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture(scope="module", autouse=True)
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # ray.init writes a token there
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session(ClusterConfig(object_store_mb=200), 4):
            yield


def describe_process() -> tuple[str, float, bool]:
    """Return the device of this process, the sum of a tensor of two ones on it, and whether it sees a GPU."""
    device = select_device()
    return str(device), float(torch.ones(2, device=device).sum()), torch.cuda.is_available()


class Replica:
    def describe(self) -> tuple[str, float, bool]:
        return describe_process()


def test_two_actors_share_a_gpu_and_a_task_without_one_sees_none():
    replicas = [ray.remote(num_cpus=1, num_gpus=0.5)(Replica).remote() for _ in range(2)]
    assert ray.get([replica.describe.remote() for replica in replicas]) == [("cuda:0", 2.0, True)] * 2
    assert ray.get(ray.remote(num_cpus=1)(describe_process).remote()) == ("cpu", 2.0, False)


def reduce_in_trial(experiment: dict[str, object]) -> tuple[str, float]:
    """Create a trial's process group, and reduce a tensor on its device and one on the CPU."""
    config = Experiment.model_validate(experiment)
    _init_single_process_group(config)
    one = torch.ones(1, device=select_device(config.train.device))
    dist.all_reduce(one)
    dist.all_reduce(torch.ones(1))
    return str(dist.group.WORLD._get_backend(one.device).name()), float(one)  # type: ignore[union-attr]  # there is a group


def test_a_trial_reduces_with_nccl():
    config = load_config("demo", ["train.gpu=true", "train.gpus_per_worker=0.5", "train.workers=1"])
    trial = ray.remote(num_cpus=1, num_gpus=0.5)(reduce_in_trial)
    assert ray.get(trial.remote(config.model_dump())) == ("nccl", 1.0)


def test_auto_uses_the_gpu():
    assert resolve_device(load_config("demo", ["train.workers=1"])).train.gpu is True
