"""Start and stop a local Ray cluster with `cluster/local.sh`, in a folder of its own."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Cluster:
    """`cluster/local.sh` in a folder of its own."""

    def __init__(self, folder: str) -> None:
        self.folder, self.dashboard = folder, free_port()
        binaries = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ, "LAKD_RAY_DIR": folder, "HOME": folder, "RAY_AUTH_MODE": "token",
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1",
            "RAY_AUTH_TOKEN_PATH": f"{folder}/.ray/auth_token",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
        }  # fmt: skip

    def script(self, *arguments: str) -> None:
        done = subprocess.run(
            ["bash", str(ROOT / "cluster/local.sh"), *arguments],
            env=self.environment, check=False, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def start(self) -> None:
        ports = ["--port", str(free_port()), "--dashboard-port", str(self.dashboard)]
        self.script("start", "--cpus", "8", *ports)


@contextmanager
def started() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="lakd-", dir="/tmp") as folder:
        cluster = Cluster(folder)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.script("stop")
