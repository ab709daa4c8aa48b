"""What all tests share: a Ray cluster, an S3 server."""

import gc
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lakd_ray import storage
from lakd_ray.errors import StorageError

BUCKET = "lakd-tests"


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One small Ray cluster for all tests in this process."""
    import ray
    import ray.data

    folder = tempfile.mkdtemp(prefix="lakd-ray-")  # short: Ray's socket paths may not exceed 107 bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # ray.init writes a token there
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                ray.data.DataContext.get_current()  # warns about its own defaults when it is first made
                ray.init(
                    address="local",
                    num_cpus=4,
                    object_store_memory=200_000_000,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=folder,
                )
            yield
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # Ray ends its processes but does not wait for them
                ray.shutdown()
                gc.collect()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`s3://bucket/prefix` on a real S3 server of this machine, with the AWS_* environment that reaches it."""
    folder = tmp_path_factory.mktemp("s3")
    servers = ("master", "volume", "filer", "s3", "admin")
    ports = _free_ports(2 * len(servers))
    s3_port = ports[2 * servers.index("s3")]
    options = [f"-{name}.port={ports[2 * index]}" for index, name in enumerate(servers)]
    options += [f"-{name}.port.grpc={ports[2 * index + 1]}" for index, name in enumerate(servers)]
    options += ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.autoCreateBucket=false", f"-bucket={BUCKET}"]
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        patch.setenv("AWS_ACCESS_KEY_ID", "lakd")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "lakdsecret")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        (folder / "data").mkdir()
        with ExitStack() as stack:
            log = stack.enter_context((folder / "weed.log").open("wb"))
            server = subprocess.Popen(
                [str(Path(sys.executable).with_name("weed")), "mini", f"-dir={folder / 'data'}", *options],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.callback(storage._s3.cache_clear)
            stack.callback(_end, server)
            storage._s3.cache_clear()
            _until_ready(server, s3_port, f"s3://{BUCKET}/ready", folder / "weed.log")
            yield f"s3://{BUCKET}/tests"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _until_ready(server: "subprocess.Popen[bytes]", port: int, probe: str, log: Path, seconds: float = 60) -> None:
    """Wait until the port answers and the bucket takes a file."""
    last: Exception | None = None
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            storage.write_bytes(probe, b"ready")
            return
        except (OSError, StorageError) as error:
            last = error
            time.sleep(0.05)
    raise AssertionError(f"the S3 server did not start: {last}\n{log.read_text(errors='replace')[-3000:]}")


def _end(server: "subprocess.Popen[bytes]") -> None:
    for ending, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        if server.poll() is None:
            os.killpg(server.pid, ending)
            try:
                server.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
