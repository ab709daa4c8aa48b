"""A real S3 server in separate processes, which tests can kill and restart."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lakd_ray import storage
from lakd_ray.errors import StorageError

BUCKET = "lakd-tests"
_SERVERS = ("master", "volume", "filer", "s3", "admin")


class S3Server:
    """A SeaweedFS server with one bucket, whose content survives a restart.

    Args:
        folder: folder for the data and the log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "data").mkdir()
        ports = _free_ports(2 * len(_SERVERS))
        self.port = ports[2 * _SERVERS.index("s3")]
        self._options = [f"-{name}.port={ports[2 * index]}" for index, name in enumerate(_SERVERS)]
        self._options += [f"-{name}.port.grpc={ports[2 * index + 1]}" for index, name in enumerate(_SERVERS)]
        self._options += ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        self._options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.autoCreateBucket=false", f"-bucket={BUCKET}"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for clients of the server."""
        return {
            "HOME": str(self._folder),
            "AWS_ACCESS_KEY_ID": "lakd",
            "AWS_SECRET_ACCESS_KEY": "lakdsecret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start the processes; `until_ready` waits for them."""
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("weed")), "mini", f"-dir={self._folder / 'data'}", *self._options],
                cwd=self._folder,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until_ready(self, seconds: float = 60) -> None:
        """Wait until the port is open and the bucket accepts a file; `environment` must be set."""
        last_error: Exception | None = None
        deadline = time.monotonic() + seconds
        assert self._process is not None
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                storage.write_bytes(f"s3://{BUCKET}/ready", b"ready")
                return
            except (OSError, StorageError) as error:
                last_error = error
                time.sleep(0.05)
        log = (self._folder / "weed.log").read_text(errors="replace")
        raise AssertionError(f"the S3 server did not start: {last_error}\n{log[-3000:]}")

    def kill(self) -> None:
        """Kill all processes at once, like a power failure."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(15)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


@contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    """Yield a server that is ready, with the environment of its clients set."""
    server = S3Server(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.start()
        try:
            server.until_ready()
            yield server
        finally:
            server.kill()
