"""Follows a Ray job from outside the cluster to its true end."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from lakd_ray.errors import ResourceError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

POLL_INTERVAL_S = 1.0
LOG_SEPARATOR = ", last available logs"  # where Ray's reason goes on with the log, which is printed already


def connect(address: str, timeout_s: float) -> "JobSubmissionClient":
    """A client of the cluster, which may still be starting.

    Raises:
        ResourceError: it cannot be reached in time, or refuses the token.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of every file that it packs
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return JobSubmissionClient(address)
        except AuthenticationError as error:
            raise ResourceError(
                f"the cluster at {address} refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH ({error})"
            ) from None
        except (OSError, RuntimeError) as error:  # not up yet, or a gateway that says so
            if time.monotonic() > deadline:
                raise ResourceError(f"no Ray cluster at {address} within {timeout_s:g} s: {error}") from None
        time.sleep(POLL_INTERVAL_S)


def submit_job(client: "JobSubmissionClient", entrypoint: str, runtime_env: dict[str, Any]) -> str:
    """Send the working directory and the command; returns the job's id.

    Raises:
        ResourceError: the cluster refuses.
    """
    try:
        return client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
    except (OSError, RuntimeError, ValueError) as error:
        raise ResourceError(f"cannot submit `{entrypoint}`: {error}") from error


def tail_until_done(client: "JobSubmissionClient", job_id: str, timeout_s: float) -> int:
    """Print the job's log until it has ended; returns what to exit with: 0 succeeded, 130 stopped, else its own status.

    A log connection that breaks is made again and goes on where it was.

    Raises:
        ResourceError: the cluster could not be reached for so long.
    """
    from aiohttp import ClientError
    from ray.job_submission import JobStatus

    log = _JobLog(client, job_id)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            info = client.get_job_info(job_id)
            if info.status.is_terminal():
                log.flush()
                break
            asyncio.run(log.tail())
            deadline = time.monotonic() + timeout_s
        except (OSError, RuntimeError, ClientError) as error:  # the errors of requests are OSErrors
            if time.monotonic() > deadline:
                raise ResourceError(f"lost the cluster; {job_id} may still run there: {error}") from None
        time.sleep(POLL_INTERVAL_S)
    reason = (info.message or "").split(LOG_SEPARATOR)[0]
    print(f"{job_id}: {info.status.value.lower()}" + (f" - {reason}" if reason else ""), flush=True)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        return 130
    return info.driver_exit_code or 1


class _JobLog:
    """A job's log, each part printed once."""

    def __init__(self, client: "JobSubmissionClient", job_id: str) -> None:
        self._client, self._job_id, self._printed = client, job_id, 0

    async def tail(self) -> None:
        """Print what comes until the connection ends, for whatever reason."""
        position = 0
        async for text in self._client.tail_job_logs(self._job_id):
            self._print(text, position)
            position += len(text)

    def flush(self) -> None:
        """Print what a connection that ended early has missed."""
        self._print(self._client.get_job_logs(self._job_id), 0)

    def _print(self, text: str, position: int) -> None:
        new = text[max(0, self._printed - position) :]
        if new:
            print(new, end="", flush=True)
        self._printed = max(self._printed, position + len(text))
