"""A stage without free resources logs what it waits for, continues when they are free, and ends at the deadline."""

import subprocess
import sys
import time

import pytest

from lakd_ray.cluster import Bundle, Node, waiting
from lakd_ray.config import ClusterConfig
from lakd_ray.errors import ResourceError, StorageError

NEEDED = "teachers: 2 workers with 1.5 CPUs each"


@pytest.fixture
def free(monkeypatch) -> list[list[Node]]:
    """Pretend to be connected to a cluster of two nodes; the first entry of the list is free now."""
    found = [[Node(0), Node(1)]]
    monkeypatch.setattr(waiting, "free_nodes", lambda: found.pop(0) if len(found) > 1 else found[0])
    monkeypatch.setattr(waiting, "all_nodes", lambda: [Node(2), Node(2)])
    monkeypatch.setattr(waiting, "describe_users", lambda: "job 02 (python jobs/tune.py x): 3 CPUs")
    monkeypatch.setattr(waiting, "_POLL_S", 0.01)
    monkeypatch.setattr(waiting, "_GRACE_S", 0.05)
    monkeypatch.setattr(waiting, "_LOG_INTERVAL_S", 0.1)
    return found


def test_a_wait_states_its_reason_and_ends_at_the_deadline(free):
    lines: list[str] = []
    with pytest.raises(ResourceError, match=r"did not find free resources within 0\.5 s \(cluster\.wait_s\)") as error:
        waiting.wait_for_room(NEEDED, Bundle(1.5), 2, ClusterConfig(wait_s=0.5), lines.append)
    assert "raise cluster.wait_s" in str(error.value)
    assert 2 <= len(lines) <= 5
    assert all(f"waiting for free resources: {NEEDED}" in line for line in lines)
    assert all("in use by job 02 (python jobs/tune.py x): 3 CPUs" in line for line in lines)


def test_a_wait_ends_when_there_is_room(free):
    free[:] = [[Node(0), Node(1)]] * 3 + [[Node(1.5), Node(1)]] * 3 + [[Node(1.5), Node(1.5)]]
    waiting.wait_for_room(NEEDED, Bundle(1.5), 2, ClusterConfig(wait_s=60))


def test_a_cluster_that_can_never_hold_it_is_an_error_at_once(free):
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"the cluster has 2 CPUs each on 2 nodes, too little for teachers"):
        waiting.wait_for_room(NEEDED, Bundle(3), 1, ClusterConfig(wait_s=60))
    assert time.monotonic() - started < 20


@pytest.fixture
def named_cluster(free, monkeypatch) -> None:
    """Pretend that the cluster is a named one, in which this job uses nothing after it has started with room."""
    free[:] = [[Node(1)], [Node(0)]]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(waiting, "holds_resources", lambda: False)
    monkeypatch.setattr(waiting, "_WATCH_S", 0.01)


@pytest.mark.usefixtures("named_cluster")
def test_a_stage_that_loses_its_room_ends_at_the_deadline(caplog):
    with (
        caplog.at_level("INFO"),
        pytest.raises(ResourceError, match=r"tasks did not find free resources within 0\.3 s"),
        waiting.watched_room("prepare: tasks", Bundle(1), ClusterConfig(wait_s=0.3)),
    ):
        time.sleep(60)  # as in Ray Data
    assert "waiting for free resources: prepare: tasks" in caplog.text


@pytest.mark.usefixtures("named_cluster")
@pytest.mark.parametrize("reason", ["its tasks run", "there is room", "the deadline is far"])
def test_a_stage_with_room_is_not_interrupted(free, monkeypatch, caplog, reason):
    if reason == "its tasks run":
        monkeypatch.setattr(waiting, "holds_resources", lambda: True)
    elif reason == "there is room":
        free[:] = [[Node(1)]]
    cluster = ClusterConfig(wait_s=60 if reason == "the deadline is far" else 0.05)
    with (
        caplog.at_level("INFO"),
        pytest.raises(StorageError, match="full"),
        waiting.watched_room("prepare: tasks", Bundle(1), cluster),
    ):
        time.sleep(0.3)
        raise StorageError("full")
    assert ("waiting for free resources" in caplog.text) == (reason == "the deadline is far")


SCENARIO = """
import logging, sys, threading, time
import ray
from lakd_ray.cluster import Bundle, capacity, free_nodes, ray_session, reserved, wait_for_room
from lakd_ray.config import ClusterConfig
from lakd_ray.errors import ResourceError
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
config = ClusterConfig(wait_s=8, object_store_mb=100)
with ray_session(config, 2):
    @ray.remote(num_cpus=2)
    class Hog:
        def ready(self): pass
    hog = Hog.remote()
    ray.get(hog.ready.remote(), timeout=100)
    while capacity(Bundle(1), free_nodes()):
        time.sleep(0.1)
    try:
        wait_for_room("one task", Bundle(1), 1, config)
    except ResourceError as error:
        print("ERROR", error)
    threading.Timer(3, lambda: ray.kill(hog)).start()
    with reserved("two tasks", Bundle(1), 2, ClusterConfig(wait_s=100)) as options:
        print("free", capacity(Bundle(1), free_nodes()))
        print("results", ray.get([ray.remote(lambda: 1).options(**options).remote() for _ in range(2)], timeout=100))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_room_in_a_real_cluster(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCENARIO], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "waiting for free resources: one task; free are 0 CPUs on 1 node" in done.stdout
    assert "ERROR one task did not find free resources within 8 s (cluster.wait_s)" in done.stdout
    assert "free 0" in done.stdout
    assert "results [1, 1]" in done.stdout
