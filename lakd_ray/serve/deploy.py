"""Start and stop the endpoint on the head node of the connected Ray cluster."""

import logging
import os
import time
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _set_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from lakd_ray import cluster, storage
from lakd_ray.config import Experiment, to_dict
from lakd_ray.errors import CheckpointError, ResourceError
from lakd_ray.serve.app import LOGGING_CONFIG, build
from lakd_ray.serve.auth import find_own_key
from lakd_ray.serve.client import Client
from lakd_ray.serve.port import resolve_port
from lakd_ray.serve.proxy.middleware import environment

APPLICATION_NAME = "lakd"
POLL_S = 0.1
logger = logging.getLogger(__name__)
_DRAIN_CALL_S = 5.0  # for the call itself, beside the wait
_GRACE_S = 30.0  # the application enforces its own deadlines; the proxy cuts off requests that exceed them


def start(config: Experiment, checkpoint: str, *, timeout_s: float = 180.0) -> str:
    """Serve a checkpoint and wait until the endpoint responds.

    Args:
        config: the experiment, with the `serve` section.
        checkpoint: checkpoint folder with its checksum file, local or in a bucket.
        timeout_s: longest wait for the endpoint, in seconds.

    Returns:
        The base URL.

    Raises:
        CheckpointError: the checkpoint does not exist, or no replica can load it.
        ConfigError: the API keys are missing or invalid.
        ResourceError: the cluster is too small, the port is taken, Serve is running already, or the timeout passed.
    """
    if not storage.is_remote(checkpoint):
        checkpoint = os.path.abspath(os.path.expanduser(checkpoint))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    section = config.serve
    _wait_for_resources(config)
    deadline = time.monotonic() + timeout_s
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
            controller_options={"runtime_env": {"env_vars": environment(section.proxy_limits)}},
        )
        target = serve.RunTarget(application, name=APPLICATION_NAME, logging_config=LOGGING_CONFIG)
        serve.run_many([target], wait_for_applications_running=False)  # `serve.run` would wait without a limit
        _wait_until_running(deadline)
        url = _base_url(section.host, port)
        timeout_s = max(1.0, deadline - time.monotonic())
        with Client(url, api_key=find_own_key(section), timeout_s=timeout_s) as client:
            client.model_info()
    except BaseException:
        stop()
        raise
    return url


def drain_and_stop(timeout_s: float, *, before_cluster_shutdown: bool) -> None:
    """Respond to the requests in progress, reject new ones with 503, and end the endpoint.

    Args:
        timeout_s: longest wait for the requests in progress, in seconds.
        before_cluster_shutdown: the caller shuts the cluster down next, which ends the endpoint. Until then it rejects
            requests; if the application was deleted first, Serve would respond with 404.
    """
    try:
        drain: Any = serve.get_app_handle(APPLICATION_NAME).drain
        unfinished = drain.remote(timeout_s).result(timeout_s=timeout_s + _DRAIN_CALL_S)
    except (RayServeException, RayError, TimeoutError) as error:  # the cluster may have failed
        logger.warning(f"the endpoint could not finish its requests ({type(error).__name__})")
    else:
        if unfinished:
            logger.warning(f"{unfinished} requests were not finished within serve.drain_s={timeout_s:g} s")
    if before_cluster_shutdown:
        _forget_client()
    else:
        stop()


def stop(*, before_cluster_shutdown: bool = False) -> None:
    """Shut Ray Serve down, if it is running.

    Args:
        before_cluster_shutdown: delete only the application, because the caller shuts the cluster down next, which ends
            Serve's own processes. If Serve shuts down itself while the cluster ends, Ray reports a failed task.
    """
    if before_cluster_shutdown:
        serve.delete(APPLICATION_NAME)
        _forget_client()
    else:
        serve.shutdown()  # type: ignore[no-untyped-call] # Ray leaves it untyped


def _forget_client() -> None:
    """Forget Serve's client; Serve takes a later cluster for the same one, because its jobs have the same ids."""
    _set_global_client(None)  # type: ignore[no-untyped-call] # Ray leaves it untyped


def _wait_for_resources(config: Experiment) -> None:
    """Reject a deployment that the cluster can never hold, and wait for room; replicas would wait without a limit."""
    if serve.status().proxies:
        raise ResourceError("Ray Serve is running already in this cluster: stop it first with `serve shutdown`")
    cluster.check_resources(config, ("serve",), cluster.all_nodes())
    request = cluster.serving_request(config)
    cluster.wait_for_room(request.description, request.bundle, request.count, config.cluster)


def _wait_until_running(deadline: float) -> None:
    """Wait until the application is running; raise if it fails, or at the deadline (in `time.monotonic` seconds)."""
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
            raise ResourceError(
                f"the endpoint did not start in time (status {application.status.value}): {details or 'no message'}; "
                "check that the cluster has the free CPUs that `serve.replicas` and `serve.cpus` need"
            )
        time.sleep(POLL_S)


def _base_url(host: str, port: int) -> str:
    """Return the URL of the endpoint from this host."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"
