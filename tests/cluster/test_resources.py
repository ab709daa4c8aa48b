"""Resources of a cluster: what `train.gpu: auto` stands for, and what workers, readers and trials need."""

import logging

import pytest

from lakd_ray import cluster
from lakd_ray.cluster import Bundle, Node, resources, session
from lakd_ray.config import Experiment, load_config
from lakd_ray.errors import ResourceError
from lakd_ray.runs.record import find_differences
from lakd_ray.tune import run as search


def experiment(*overrides: str) -> Experiment:
    return load_config("demo", ["train.workers=1", *overrides])


@pytest.fixture
def nodes(monkeypatch) -> list[Node]:
    """Pretend to be connected to a cluster with these nodes."""
    found = [Node(64)]
    monkeypatch.setattr(resources, "all_nodes", lambda: found)
    return found


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
def test_auto_uses_gpus_if_they_suffice(nodes, caplog, overrides, gpus, uses_gpus, message):
    caplog.set_level(logging.INFO)
    nodes[:] = [Node(64, gpus)]
    config = cluster.resolve_device(experiment(*overrides))
    assert config.train.gpu is uses_gpus
    assert message in caplog.text
    caplog.clear()
    assert cluster.resolve_device(config) is config
    assert not caplog.text


@pytest.mark.parametrize("gpu", ["true", "false"])
def test_a_configured_device_stays(nodes, caplog, gpu):
    caplog.set_level(logging.INFO)
    config = experiment(f"train.gpu={gpu}")
    assert cluster.resolve_device(config) is config
    assert not caplog.text


def test_auto_with_a_precision_that_needs_gpus_is_rejected_without_them(nodes):
    config = cluster.resolve_device(experiment("train.precision=fp16"))
    with pytest.raises(ResourceError, match=r"has 0 GPUs, .* set train\.gpu: false and train\.precision: bf16"):
        cluster.check_resources(config, ["teachers"], nodes)


def test_local_cluster_has_the_same_cpus_as_before_readers_were_counted(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for module in (resources, session):
        monkeypatch.setattr(module, "count_visible_gpus", lambda: 0)
    assert cluster.local_cpus(experiment("train.parallel_runs=3")) == 7
    assert cluster.local_cpus(experiment("train.parallel_runs=3", "train.reader_cpus=2")) == 12
    monkeypatch.setattr(resources, "count_visible_gpus", lambda: 4)
    assert cluster.local_cpus(experiment("train.parallel_runs=3")) == 12
    assert cluster.local_cpus(experiment("train.parallel_runs=3", "train.gpu=false")) == 7


def test_trials_leave_cpus_for_their_readers(nodes):
    config = experiment("tune.max_concurrent_trials=4")
    nodes[:] = [Node(4)]
    assert cluster.max_concurrent_trials(config) == 3
    nodes[:] = [Node(1)]
    assert cluster.max_concurrent_trials(config) == 1
    on_gpu = experiment("tune.max_concurrent_trials=8", "train.gpu=true", "train.gpus_per_worker=0.5")
    nodes[:] = [Node(64, 2)]
    assert cluster.max_concurrent_trials(on_gpu) == 4
    assert search._trial_bundle(on_gpu, 4) == Bundle(3, 0.5)
    assert search._trial_bundle(config, 4) == Bundle(1.25)


def test_a_folder_belongs_to_a_configuration_on_any_device():
    old = {"student": {"train": {"gpu": True, "engine": "torch"}}}
    assert find_differences(old, {"student": {"train": {"engine": "torch"}}}) == []


def test_each_process_fits_on_one_node():
    config = experiment("train.workers=2", "train.cpus_per_worker=4", "train.gpu=false")
    cluster.check_resources(config, ["teachers"], [Node(9)])
    cluster.check_resources(config, ["teachers"], [Node(5), Node(5)])
    message = (
        r"has 3 CPUs each on 4 nodes, but 1 x 2 workers .* need 2 x 4\.5 CPUs, each on one node: there is room for 0"
    )
    with pytest.raises(ResourceError, match=message):
        cluster.check_resources(config, ["teachers"], [Node(3)] * 4)
    with pytest.raises(ResourceError, match=r"has 5 CPUs on 1 node, 4 CPUs on 1 node, .* there is room for 1"):
        cluster.check_resources(config, ["teachers"], [Node(5), Node(4)])


@pytest.mark.parametrize("stage", ["prepare", "teachers", "distill", "tune", "evaluate", "serve"])
def test_every_stage_is_checked(stage):
    config = experiment("train.cpus_per_worker=4", "serve.cpus=4")
    with pytest.raises(ResourceError, match="CPUs"):
        cluster.check_resources(config, [stage], [Node(0.5)] * 20)
    cluster.check_resources(config, [stage], [Node(16)])


@pytest.mark.parametrize(
    ("nodes", "bundle", "room"),
    [
        ([Node(3), Node(3)], Bundle(4), 0),
        ([Node(4), Node(5)], Bundle(1.5), 5),
        ([Node(0.3)] * 3, Bundle(0.1), 9),
        ([Node(64, 1), Node(64, 1)], Bundle(1, 1), 2),
        ([Node(64, 1), Node(1, 4)], Bundle(2, 1), 1),
        ([Node(64, 1)], Bundle(1, 0.4), 2),
        ([Node(64, 2)], Bundle(1, 0.5), 4),
        ([Node(64, 1.5)], Bundle(1, 0.5), 3),
        ([Node(64, 0.3)], Bundle(1, 0.5), 0),
    ],
)
def test_capacity(nodes, bundle, room):
    assert cluster.capacity(bundle, nodes) == room
