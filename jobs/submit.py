"""Submit a job to a running Ray cluster, print its log until it ends, and exit with its status.

python jobs/submit.py pipeline EXPERIMENT [--set dotted.key=value ...]

It uploads `lakd_ray`, `jobs` and the file of the experiment, from any folder; data and outputs are not uploaded.
`ray job submit --runtime-env runtime_env.yaml --working-dir .` does the same, but exits with 0 also if the job was
stopped or the connection to its log broke. Exit status here: 0 the job succeeded, 130 it was stopped, 2 the cluster
cannot be reached or rejects the job, 128 + N after signal N, otherwise the job's own. Requests to an address with
http:// are sent to no proxy, which could read the token. RAY_API_SERVER_ADDRESS is the address of the cluster, and
RAY_AUTH_TOKEN_PATH the file with its token.
"""

import argparse
import asyncio
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from lakd_ray import environment, signals
from lakd_ray.errors import LakdError, ResourceError
from lakd_ray.job_package import job_package

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).resolve().parent.parent
POLL_INTERVAL_S = 1.0
MIN_SILENCE_S = 60.0  # without text of a job, after which the connection is opened again
LOG_SEPARATOR = ", last available logs"  # Ray's message ends with the log, which is printed already

T = TypeVar("T")


def main() -> int:
    """Submit the job that the command line names and return the exit status."""
    jobs = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem != "submit")
    parser = argparse.ArgumentParser(description="Submit a job, print its log, and exit with its status.")
    parser.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"))
    parser.add_argument(
        "--wait", type=float, default=60.0, metavar="S", help="seconds to wait for a cluster that does not respond (60)"
    )
    parser.add_argument("job", choices=jobs, help="script in jobs/")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script")
    options = parser.parse_args()
    environment.bypass_proxies(options.address)
    runtime_env = yaml.safe_load((ROOT / "runtime_env.yaml").read_text(encoding="utf-8"))
    job_id = None
    try:
        with job_package(ROOT, options.arguments) as (folder, arguments):
            entrypoint = shlex.join(["python", f"jobs/{options.job}.py", *arguments])
            client = connect(options.address, options.wait)
            job_id = submit_job(client, entrypoint, {**runtime_env, "working_dir": str(folder)})
        print(
            f"submitted {job_id} to {options.address}; it continues after Ctrl-C, `ray job stop {job_id}` stops it",
            flush=True,
        )
        return tail_until_done(client, job_id, options.wait)
    except LakdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        state = "nothing was submitted"
        if job_id is not None:
            state = f"the job continues; `ray job logs --follow {job_id}` prints its log"
        print(f"\ninterrupted; {state}", file=sys.stderr)
        return 128 + getattr(interruption, "signum", signal.SIGINT)


def connect(address: str, timeout_s: float) -> "JobSubmissionClient":
    """Return a client of the cluster, which may still be starting.

    Raises:
        ResourceError: the cluster cannot be reached in time, or rejects the token.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """A client whose requests end after the same time without a response; Ray's own would wait forever."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=max(1.0, timeout_s), **options)

    logging.getLogger("ray").setLevel(logging.ERROR)  # it logs every file that it packs
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return within(max(POLL_INTERVAL_S, deadline - time.monotonic()), Client, address)
        except AuthenticationError as error:
            raise ResourceError(
                f"the cluster at {address} rejects the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH ({error})"
            ) from None
        except (OSError, RuntimeError) as error:  # not started yet; a gateway in front of it raises RuntimeError
            if time.monotonic() > deadline:
                raise ResourceError(f"no Ray cluster at {address} within {timeout_s:g} s: {error}") from None
        time.sleep(POLL_INTERVAL_S)


def within(timeout_s: float, function: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a function, or raise TimeoutError; a server that sends a byte now and then is late, too."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001 -- raised by the caller
            outcome.set_exception(error)

    threading.Thread(target=run, name="request", daemon=True).start()  # of a pool, the exit would wait for it
    try:
        return outcome.result(timeout_s)
    except FutureTimeoutError:
        raise TimeoutError(f"no response within {timeout_s:g} s") from None


def submit_job(client: "JobSubmissionClient", entrypoint: str, runtime_env: dict[str, Any]) -> str:
    """Upload the working directory, start the command and return the id of the job.

    Raises:
        ResourceError: the cluster rejects the job.
    """
    try:
        return client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
    except (OSError, RuntimeError, ValueError) as error:
        raise ResourceError(f"cannot submit `{entrypoint}`: {error}") from error


def tail_until_done(client: "JobSubmissionClient", job_id: str, timeout_s: float) -> int:
    """Print the log of a job until it ends and return the exit status: 0 succeeded, 130 stopped, else the job's own.

    A broken connection is restored, and the log continues where it stopped.

    Raises:
        ResourceError: the cluster could not be reached for `timeout_s` seconds.
    """
    from aiohttp import ClientError
    from ray.job_submission import JobStatus

    log = _JobLog(client, job_id)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            info = within(max(POLL_INTERVAL_S, deadline - time.monotonic()), client.get_job_info, job_id)
            deadline = time.monotonic() + timeout_s
            if info.status.is_terminal():
                log.flush()
                break
            asyncio.run(log.tail(max(timeout_s, MIN_SILENCE_S)))
            deadline = time.monotonic() + timeout_s
        except (OSError, RuntimeError, ClientError) as error:  # errors of HTTP requests are OSErrors
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
    """The log of a job, each part of which is printed once."""

    def __init__(self, client: "JobSubmissionClient", job_id: str) -> None:
        self._client, self._job_id, self._printed = client, job_id, 0

    async def tail(self, silence_s: float) -> None:
        """Print new text until the connection ends, or has had no text for some time: the server may be gone."""
        position = 0
        parts = self._client.tail_job_logs(self._job_id)
        with suppress(TimeoutError, StopAsyncIteration):
            while True:
                text = await asyncio.wait_for(anext(parts), silence_s)
                self._print(text, position)
                position += len(text)

    def flush(self) -> None:
        """Print the text that a connection which ended early has missed."""
        self._print(self._client.get_job_logs(self._job_id), 0)

    def _print(self, text: str, position: int) -> None:
        new = text[max(0, self._printed - position) :]
        if new:
            print(new, end="", flush=True)
        self._printed = max(self._printed, position + len(text))


if __name__ == "__main__":
    with signals.interruptible():
        sys.exit(main())
