"""Fixtures that all tests share: a Ray cluster and an S3 server."""

import gc
import logging
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator

import imageio_ffmpeg
import pytest
from support.s3_server import BUCKET, running_s3

from lakd_ray import ray_token

pytest_plugins = ["support.prediction_fixtures"]

os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # read when a test first imports Ray


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs of this machine, before torch looks for them, unless the tests marked `gpu` are selected.

    Also end the ignoring of Ctrl-C that a shell sets for commands in the background, and that processes inherit.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    expression = str(config.option.markexpr)
    if "gpu" not in expression or "not gpu" in expression:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Show warnings of tests on a GPU instead of failing: libraries have others there, which no test on CPUs finds."""
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture
def ffmpeg(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a real ffmpeg first on the PATH and return its location."""
    program = imageio_ffmpeg.get_ffmpeg_exe()
    folder = tmp_path_factory.mktemp("ffmpeg")
    (folder / "ffmpeg").symlink_to(program)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return program


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start one small Ray cluster for all tests in this process."""
    import ray
    import ray.data

    folder = tempfile.mkdtemp(prefix="lakd-ray-")  # short: Ray's socket paths may not exceed 107 bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # ray.init writes a token there
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray_token.prepare_token()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                ray.data.DataContext.get_current()  # warns about its own defaults when first created
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
    """Return `s3://bucket/prefix` on a real local S3 server, and set the AWS_* environment for it."""
    with running_s3(tmp_path_factory.mktemp("s3")):
        yield f"s3://{BUCKET}/tests"
