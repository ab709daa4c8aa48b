"""Rolling updates under load with `serve deploy`: new weights, rollback, a killed replica, a canary."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from support import tiny_models as tiny
from support.ray_cluster import ROOT, Cluster, free_port, started

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

CLIENTS = 3
PAUSE_S = 0.1  # between requests of a client, so that two cores have time left to start replicas


class Fleet:
    """The application of `cluster/serve.yaml`, with a different checkpoint and port."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._file, self.port = cluster, folder / "serve.yaml", free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def serve(self, *arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("serve")), *arguments]
        address = {"RAY_DASHBOARD_ADDRESS": self._cluster.environment["RAY_API_SERVER_ADDRESS"]}
        done = subprocess.run(
            command, env=self._cluster.environment | address, check=False, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    def deploy(self, checkpoint: str, **settings: Any) -> None:
        content = yaml.safe_load((ROOT / "cluster/serve.yaml").read_text())
        content["http_options"]["port"] = self.port
        (application,) = content["applications"]
        application["args"] = {"checkpoint": checkpoint, "serve": {"replicas": 2, "cpus": 1} | settings}
        self._file.write_text(yaml.safe_dump(content))
        self.serve("deploy", str(self._file))

    def running(self) -> bool:
        return yaml.safe_load(self.serve("status"))["applications"]["lakd"]["status"] == "RUNNING"


class Load:
    """Clients that send requests continuously and record the responses."""

    def __init__(self, url: str, clips: list[bytes]) -> None:
        self._url, self._clips, self._stop = url, clips, threading.Event()
        self.responses: list[tuple[int, str]] = []
        self.seconds: list[float] = []

    @contextmanager
    def running(self) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._send_requests, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)

    def _send_requests(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60, headers={"Content-Type": "audio/wav"}) as client:
            while not self._stop.is_set():
                number += 1
                started = time.monotonic()
                try:
                    response = client.post("/v1/emotion", content=self._clips[number % len(self._clips)])
                    version = response.json().get("version", response.text[:200])
                    self.responses.append((response.status_code, version))
                except httpx.HTTPError as error:
                    self.responses.append((0, repr(error)))
                self.seconds.append(time.monotonic() - started)
                self._stop.wait(PAUSE_S)

    def next_versions(self, count: int = 20) -> set[str]:
        """Return the model versions of the next responses."""
        before = len(self.responses)
        wait(lambda: len(self.responses) >= before + CLIENTS + count)
        return {version for _, version in self.responses[before + CLIENTS :]}


def wait(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not reached within {seconds:g} s"
        time.sleep(0.1)


def replicas() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter()
        if "ServeReplica:lakd:ModelReplica" in process.name() + _title(process)
    ]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/model", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with started() as cluster:
        yield cluster


def test_rolling_updates_lose_no_request(cluster: Cluster, recording: Callable[..., bytes], tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
    old, new = (tiny.checkpoint(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    fleet = Fleet(cluster, tmp_path)
    fleet.deploy(old)
    wait(lambda: healthy(fleet.url) and fleet.running())
    with Load(fleet.url, [recording(0.5 + 0.1 * n) for n in range(20)]).running() as load:
        (first,) = load.next_versions()
        fleet.deploy(new)
        wait(lambda: load.next_versions() - {first})
        wait(fleet.running)
        (second,) = load.next_versions()
        assert second != first

        fleet.deploy(old)  # rollback
        wait(lambda: load.next_versions() == {first})
        wait(fleet.running)

        victim = replicas()[0]
        os.kill(victim.pid, signal.SIGKILL)
        wait(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE)
        wait(lambda: len(replicas()) == 2 and fleet.running())
        assert load.next_versions() == {first}

        fleet.deploy(old, canary={"checkpoint": new, "traffic_fraction": 0.5})
        wait(lambda: load.next_versions() == {first, second})
        wait(fleet.running)
        for requested, version in (("stable", first), ("canary", second)):
            response = httpx.post(
                f"{fleet.url}/v1/emotion",
                content=recording(1.0),
                headers={"Content-Type": "audio/wav", "X-Model": requested},
                timeout=60,
            )
            assert response.json()["version"] == version
    failed = [response for response in load.responses if response[0] != 200]
    print(Counter(load.responses), f"slowest {max(load.seconds):.2f} s of {len(load.seconds)}")
    assert not failed, failed[:5]
    fleet.serve("shutdown", "-y")
    wait(lambda: not healthy(fleet.url))
