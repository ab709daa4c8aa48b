"""Resources of a cluster: what `train.gpu: auto` stands for, and what workers, readers and trials need."""

import logging

import pytest
import ray

from lakd_ray import cluster
from lakd_ray.config import Experiment, load_config
from lakd_ray.errors import ResourceError
from lakd_ray.runs.record import find_differences
from lakd_ray.tune import run as search


def experiment(*overrides: str) -> Experiment:
    return load_config("demo", ["train.workers=1", *overrides])


@pytest.fixture
def available(monkeypatch) -> dict[str, float]:
    """Pretend to be connected to a cluster with these resources."""
    resources: dict[str, float] = {"CPU": 64}
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    return resources


@pytest.mark.parametrize(
    ("overrides", "gpus", "uses_gpus", "message"),
    [
        ((), 0, False, "training on CPUs: the cluster has no GPU"),
        ((), 1, True, "training on GPUs: the workers need 1, the cluster has 1"),
        (("train.workers=2",), 1, False, "on CPUs: the workers need 2 GPUs, the cluster has 1. To use GPUs, lower"),
        (("train.workers=2",), 4, True, "training on GPUs: the workers need 2, the cluster has 4"),
        (("train.parallel_runs=4", "train.gpus_per_worker=0.25"), 1, True, "the workers need 1, the cluster has 1"),
        (("train.parallel_runs=3", "train.gpus_per_worker=0.4"), 1, False, "the workers need 2 GPUs"),
        (("tune.workers_per_trial=2",), 1, False, "the workers need 2 GPUs"),
    ],
)  # fmt: skip
def test_auto_uses_gpus_if_they_suffice(available, caplog, overrides, gpus, uses_gpus, message):
    caplog.set_level(logging.INFO)
    available["GPU"] = gpus
    config = cluster.resolve_device(experiment(*overrides))
    assert config.train.gpu is uses_gpus
    assert message in caplog.text
    caplog.clear()
    assert cluster.resolve_device(config) is config
    assert not caplog.text


@pytest.mark.parametrize("gpu", ["true", "false"])
def test_a_configured_device_stays(available, caplog, gpu):
    caplog.set_level(logging.INFO)
    config = experiment(f"train.gpu={gpu}")
    assert cluster.resolve_device(config) is config
    assert not caplog.text


def test_auto_with_a_precision_that_needs_gpus_is_rejected_without_them(available):
    config = cluster.resolve_device(experiment("train.precision=fp16"))
    with pytest.raises(ResourceError, match=r"has 0 GPUs, .* set train\.gpu: false and train\.precision: bf16"):
        cluster.check_resources(config, ["teachers"], available)


def test_local_cluster_has_the_same_cpus_as_before_readers_were_counted(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(cluster, "count_visible_gpus", lambda: 0)
    assert cluster.local_cpus(experiment("train.parallel_runs=3")) == 7
    assert cluster.local_cpus(experiment("train.parallel_runs=3", "train.reader_cpus=2")) == 12
    monkeypatch.setattr(cluster, "count_visible_gpus", lambda: 4)
    assert cluster.local_cpus(experiment("train.parallel_runs=3")) == 12
    assert cluster.local_cpus(experiment("train.parallel_runs=3", "train.gpu=false")) == 7


def test_trials_leave_cpus_for_their_readers(available):
    config = experiment("tune.max_concurrent_trials=4")
    available["CPU"] = 4
    assert cluster.max_concurrent_trials(config) == 3
    available["CPU"] = 1
    assert cluster.max_concurrent_trials(config) == 1
    on_gpu = experiment("tune.max_concurrent_trials=8", "train.gpu=true", "train.gpus_per_worker=0.5")
    available |= {"CPU": 64, "GPU": 2}
    assert cluster.max_concurrent_trials(on_gpu) == 4
    assert search._trial_resources(on_gpu) == {"CPU": 1, "GPU": 0.5}
    assert search._trial_resources(config) == {"CPU": 1, "GPU": 0.0}


def test_a_folder_belongs_to_a_configuration_on_any_device():
    old = {"student": {"train": {"gpu": True, "engine": "torch"}}}
    assert find_differences(old, {"student": {"train": {"engine": "torch"}}}) == []
