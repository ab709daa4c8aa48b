"""A fleet under load: new weights, back again, a lost replica, a canary. `serve deploy` as a person would, real Ray."""

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
PAUSE_S = 0.1  # of a client, so that there is time left on two cores to start replicas in


class Fleet:
    """The endpoint of `cluster/serve.yaml`, with another checkpoint and port."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._file, self.port = cluster, folder / "serve.yaml", free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def serve(self, *words: str) -> str:
        command = [str(Path(sys.executable).with_name("serve")), *words]
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
    """Clients that ask again and again, and what they were answered."""

    def __init__(self, url: str, clips: list[bytes]) -> None:
        self._url, self._clips, self._stop = url, clips, threading.Event()
        self.answers: list[tuple[int, str]] = []
        self.seconds: list[float] = []

    @contextmanager
    def going(self) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60, headers={"Content-Type": "audio/wav"}) as client:
            while not self._stop.is_set():
                number += 1
                started = time.monotonic()
                try:
                    answer = client.post("/v1/emotion", content=self._clips[number % len(self._clips)])
                    told = answer.json().get("version", answer.text[:200])
                    self.answers.append((answer.status_code, told))
                except httpx.HTTPError as error:
                    self.answers.append((0, repr(error)))
                self.seconds.append(time.monotonic() - started)
                self._stop.wait(PAUSE_S)

    def more(self, count: int = 20) -> set[str]:
        """What the next requests are answered by."""
        before = len(self.answers)
        wait(lambda: len(self.answers) >= before + CLIENTS + count)
        return {told for _, told in self.answers[before + CLIENTS :]}


def wait(reached: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.1)


def replicas() -> list[psutil.Process]:
    return [one for one in psutil.process_iter() if "ServeReplica:lakd:ModelReplica" in one.name() + _title(one)]


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


def test_a_fleet_under_load(cluster: Cluster, recording: Callable[..., bytes], tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
    old, new = (tiny.checkpoint(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    fleet = Fleet(cluster, tmp_path)
    fleet.deploy(old)
    wait(lambda: healthy(fleet.url) and fleet.running())
    with Load(fleet.url, [recording(0.5 + 0.1 * n) for n in range(20)]).going() as load:
        (first,) = load.more()
        fleet.deploy(new)
        wait(lambda: load.more() - {first})
        wait(fleet.running)
        (second,) = load.more()
        assert second != first

        fleet.deploy(old)  # and back
        wait(lambda: load.more() == {first})
        wait(fleet.running)

        victim = replicas()[0]
        os.kill(victim.pid, signal.SIGKILL)
        wait(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE)
        wait(lambda: len(replicas()) == 2 and fleet.running())
        assert load.more() == {first}

        fleet.deploy(old, canary={"checkpoint": new, "traffic_fraction": 0.5})
        wait(lambda: load.more() == {first, second})
        wait(fleet.running)
        for wanted, version in (("stable", first), ("canary", second)):
            answer = httpx.post(
                f"{fleet.url}/v1/emotion",
                content=recording(1.0),
                headers={"Content-Type": "audio/wav", "X-Model": wanted},
                timeout=60,
            )
            assert answer.json()["version"] == version
    failed = [answer for answer in load.answers if answer[0] != 200]
    print(Counter(load.answers), f"slowest {max(load.seconds):.2f} s of {len(load.seconds)}")
    assert not failed, failed[:5]
    fleet.serve("shutdown", "-y")
    wait(lambda: not healthy(fleet.url))
