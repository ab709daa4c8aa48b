"""Starts and stops the endpoint in the Ray cluster this process is connected to, from its head node."""

import logging
import os
import time

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

from lakd_ray import cluster, storage
from lakd_ray.config import Experiment, to_dict
from lakd_ray.errors import CheckpointError, ResourceError
from lakd_ray.serve.app import LOGGING_CONFIG, build
from lakd_ray.serve.client import Client
from lakd_ray.serve.run import resolve_port

APPLICATION_NAME = "lakd"
POLL_S = 0.1
_GRACE_S = 30.0  # the application keeps its own deadlines; the proxy ends what should get past them


def start(config: Experiment, checkpoint: str, *, timeout_s: float = 180.0) -> str:
    """Serve a checkpoint and wait until it has answered.

    Args:
        config: the experiment; its `serve` section counts.
        checkpoint: sealed checkpoint folder, local or in a bucket.
        timeout_s: longest wait for the endpoint.

    Returns:
        The base URL.

    Raises:
        CheckpointError: there is no such checkpoint, or no replica can load it.
        ResourceError: the cluster is too small, the port is taken, Serve runs already, or the deadline passed.
    """
    if not storage.is_remote(checkpoint):
        checkpoint = os.path.abspath(os.path.expanduser(checkpoint))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    deadline = time.monotonic() + timeout_s
    section = config.serve
    _check_resources(config)
    application = build({"checkpoint": checkpoint, "serve": to_dict(section)})
    port = resolve_port(section)
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": section.host,
                "port": port,
                "request_timeout_s": max(section.deadline_s, section.max_stream_s) + _GRACE_S,
            },
            logging_config=LOGGING_CONFIG,
        )
        target = serve.RunTarget(application, name=APPLICATION_NAME, logging_config=LOGGING_CONFIG)
        serve.run_many([target], wait_for_applications_running=False)  # `serve.run` would wait for ever
        _wait_until_running(deadline)
        url = _base_url(section.host, port)
        with Client(url, timeout_s=max(1.0, deadline - time.monotonic())) as client:
            client.model_info()
    except BaseException:
        stop()
        raise
    return url


def stop(*, before_cluster_shutdown: bool = False) -> None:
    """Stop answering and shut Serve down. Nothing happens if it does not run.

    Args:
        before_cluster_shutdown: the cluster is shut down next, and Serve's own processes with it. Ray would report their
            orderly end as a failed task, when the cluster has gone before they have.
    """
    if before_cluster_shutdown:
        serve.delete(APPLICATION_NAME)
    else:
        serve.shutdown()  # type: ignore[no-untyped-call] # Ray leaves it untyped


def _check_resources(config: Experiment) -> None:
    """Refuse what would otherwise wait for ever."""
    if serve.status().proxies:
        raise ResourceError("Ray Serve runs already in this cluster: stop it first with `serve shutdown`")
    have = ray.cluster_resources()  # type: ignore[no-untyped-call] # Ray leaves it untyped
    cluster.check_resources(config, ("serve",), have)


def _wait_until_running(deadline: float) -> None:
    """Until the application runs, has failed, or the time is over."""
    while True:
        application = serve.status().applications[APPLICATION_NAME]
        if application.status == ApplicationStatus.RUNNING:
            return
        messages = [item.message.strip() for item in application.deployments.values()]
        # a message may be a traceback, whose last line is the error
        details = "; ".join(message.splitlines()[-1] for message in messages if message)
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise CheckpointError(f"the endpoint cannot start: {details or application.message}")
        if time.monotonic() > deadline:
            raise ResourceError(f"the endpoint did not start in time ({application.status.value}): {details}")
        time.sleep(POLL_S)


def _base_url(host: str, port: int) -> str:
    """Where this machine reaches the endpoint."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"
