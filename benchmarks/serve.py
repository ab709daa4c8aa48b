"""Speed of the endpoint, compared with transformers' pipeline behind FastAPI and uvicorn with the same weights.

    python benchmarks/serve.py [--requests 64] [--repeats 3] [--threads 1] [--backends torch onnx-int8] [--small]

The input is clips of noise of 2 to 10 s, the network has the size of wav2vec2-base and random weights; speed depends on
neither. Each server is a separate process with `--threads` torch threads for its model, which this process loads over
loopback; the servers take turns in each repeat. Throughput is in audio seconds per second at `--concurrency`, with the
99th percentile of the response times; latency is with one request at a time.

    pipeline        each request in a thread of uvicorn's pool, as with a plain `def` in FastAPI
    pipeline, lock  the same, one forward pass at a time
    BACKEND         this project's endpoint: Ray Serve with one replica of that backend
    no-op           a Ray Serve endpoint that reads the body and returns {}: the overhead of Serve
    predictor       this project's model in this process, without a server
"""

import argparse
import asyncio
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import soundfile

from common import BASE, RATE, SMALL, write_checkpoint
from figures import spread
from utilization import UtilizationSampler

Attempt = Callable[[str], AbstractContextManager[None]]
LOG_LINES = 5  # of a server that did not start, in the error
PIPELINES = ("pipeline", "pipeline, lock")
# Concurrent requests; the endpoint rejects more than 96.
CONCURRENCIES = (1, 8, 32, 64)


@dataclass(frozen=True)
class Server:
    """A server to measure.

    Attributes:
        name: `pipeline`, `pipeline, lock`, `no-op`, or a backend of this project's endpoint.
        checkpoint: folder of the model.
        threads: CPU threads of the model.
        gpus: GPUs of the model, 0 or 1.
    """

    name: str
    checkpoint: str
    threads: int
    gpus: int = 0


def clips(count: int) -> list[bytes]:
    """Return WAV files of 2 to 10 s."""
    random = np.random.default_rng(0)
    files = []
    for seconds in random.uniform(2, 10, count):
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.1 * random.standard_normal(round(seconds * RATE)), RATE, format="WAV")
        files.append(buffer.getvalue())
    return files


def audio_seconds(contents: Sequence[bytes]) -> float:
    """Return the duration of WAV files."""
    return sum(len(content) - 44 for content in contents) / 2 / RATE


def serve(server: Server) -> None:
    """Run a server until standard input closes, and print its URL."""
    if server.name.startswith("pipeline"):
        _serve_pipeline(server, one_at_a_time=server.name.endswith("lock"))
        return
    import ray

    ray.init(address="local", num_cpus=server.threads, include_dashboard=False, log_to_driver=False)
    print(_no_op() if server.name == "no-op" else _endpoint(server), flush=True)
    sys.stdin.read()


def _endpoint(server: Server) -> str:
    from lakd_ray.config import Experiment
    from lakd_ray.serve import deploy

    recipe = {"model": {"pretrained": "unused"}}
    settings = {"port": 0, "cpus": server.threads, "gpus": server.gpus, "backend": server.name}
    if server.gpus:
        settings["decoder_processes"] = 4  # two do not keep up with a GPU
    content = {"name": "b", "languages": ["en"], "corpora": [{"name": "c", "root": "c"}], "serve": settings}
    config = Experiment.model_validate({**content, "teacher": recipe, "student": recipe})
    return deploy.start(config, server.checkpoint)


def _no_op() -> str:
    from fastapi import FastAPI, Request
    from ray import serve as ray_serve

    from lakd_ray.config import ServeConfig
    from lakd_ray.serve.port import resolve_port

    app = FastAPI()

    @ray_serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=64)
    @ray_serve.ingress(app)
    class NoOp:
        @app.post("/v1/emotion")
        async def nothing(self, request: Request) -> dict[str, str]:
            await request.body()
            return {}

    port = resolve_port(ServeConfig(port=0))
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    ray_serve.run(NoOp.bind())
    return f"http://127.0.0.1:{port}"


def _serve_pipeline(server_: Server, *, one_at_a_time: bool) -> None:
    import socket
    import threading
    from contextlib import nullcontext

    import torch
    import uvicorn
    from fastapi import Body, FastAPI
    from transformers import pipeline

    torch.set_num_threads(server_.threads)
    device = "cuda" if server_.gpus else "cpu"
    classify = pipeline("audio-classification", model=server_.checkpoint, device=device)
    turn: Any = threading.Lock() if one_at_a_time else nullcontext()
    app = FastAPI()

    @app.post("/v1/emotion")
    def emotion(content: bytes = Body(media_type="application/octet-stream")) -> Any:
        wave, rate = soundfile.read(io.BytesIO(content), dtype="float32")
        with turn, torch.inference_mode():
            return classify({"raw": wave, "sampling_rate": rate})

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    print(f"http://127.0.0.1:{port}", flush=True)
    sys.stdin.read()
    server.should_exit = True
    thread.join()


@contextmanager
def running(server: Server) -> Iterator[str]:
    """Start a server in a process and yield its URL.

    Raises:
        RuntimeError: the server did not start; the message has the end of its log.
    """
    command = [sys.executable, __file__, "--serve", server.name, "--checkpoint", server.checkpoint]
    command += ["--threads", str(server.threads), "--gpus", str(server.gpus)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(server.threads)}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("http"):
                    break
            else:
                log.seek(0)
                raise RuntimeError(f"{server.name} did not start: {' '.join(log.read().splitlines()[-LOG_LINES:])}")
            yield line.strip()
        finally:
            process.stdin.close()


async def load(url: str, contents: list[bytes], concurrency: int) -> tuple[float, list[float]]:
    """Send all requests; return the total seconds and the seconds of each request."""
    waiting, latencies = list(contents), []
    headers = {"Content-Type": "application/octet-stream"}
    async with httpx.AsyncClient(base_url=url, timeout=600, headers=headers) as client:

        async def send_requests() -> None:
            while waiting:
                content, started = waiting.pop(), time.perf_counter()
                (await client.post("/v1/emotion", content=content)).raise_for_status()
                latencies.append(time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*[send_requests() for _ in range(concurrency)])
        return time.perf_counter() - started, latencies


@dataclass(frozen=True)
class Level:
    """The speed of a server at a number of concurrent requests."""

    concurrency: int
    audio_seconds_per_second: float
    p99_s: float


def measure_levels(url: str, contents: list[bytes], concurrencies: Sequence[int]) -> list[Level]:
    """Measure a server at several numbers of concurrent requests."""
    levels = []
    for concurrency in concurrencies:
        sent = contents[: 16 * concurrency]
        seconds, latencies = asyncio.run(load(url, sent, concurrency))
        levels.append(Level(concurrency, audio_seconds(sent) / seconds, float(np.quantile(latencies, 0.99))))
    return levels


def speed_within(levels: Sequence[Level], p99_s: float) -> float:
    """Return the highest speed with a 99th percentile of at most `p99_s`; 0 if every level exceeds it."""
    return max((level.audio_seconds_per_second for level in levels if level.p99_s <= p99_s), default=0.0)


def compare_at_equal_p99(
    checkpoint: str, backends: Sequence[str], options: argparse.Namespace, add: Callable[..., Any], attempt: Attempt
) -> dict[str, list[list[Level]]]:
    """Compare the endpoint with both pipelines at the 99th percentile that the pipeline has at its highest speed.

    Args:
        checkpoint: folder of the model.
        backends: backends of the endpoint.
        options: requests, repeats, threads and gpus, as in the command line.
        add: takes the name of a figure, its values and options.
        attempt: returns the context in which a server runs; it may suppress errors.

    Returns:
        The levels of each server, for each repeat.
    """
    contents = clips(options.requests)
    levels: dict[str, list[list[Level]]] = {}
    for name in (*PIPELINES, *backends, "no-op"):
        with (
            attempt(f"server {name}"),
            UtilizationSampler() as sampler,
            running(Server(name, checkpoint, options.threads, options.gpus)) as url,
        ):
            measure_levels(url, contents, [8])  # warms up
            levels[name] = [measure_levels(url, contents, CONCURRENCIES) for _ in range(options.repeats)]
            best = [_fastest(repeat) for repeat in levels[name]]
            speeds = [level.audio_seconds_per_second for level in best]
            add(f"{name}, audio-s/s", speeds, digits=0, memory_gib=sampler.peak_memory_gib)
            add(f"{name}, 99th percentile at that speed, s", [level.p99_s for level in best], digits=3)
            alone = [repeat[0].p99_s for repeat in levels[name]]
            add(f"{name}, one request at a time, 99th percentile, s", alone, digits=3)
        if name in backends and name in levels and any(pipeline in levels for pipeline in PIPELINES):
            ratios = _ratios_at_equal_p99(levels, name)
            add(f"{name}, of the faster pipeline at its 99th percentile", ratios, digits=2, aim=3.0)
    return levels


def _fastest(levels: Sequence[Level]) -> Level:
    return max(levels, key=lambda level: level.audio_seconds_per_second)


def _ratios_at_equal_p99(levels: dict[str, list[list[Level]]], name: str) -> list[float]:
    pipelines = [[_fastest(repeat) for repeat in levels[pipeline]] for pipeline in PIPELINES if pipeline in levels]
    baseline = max(pipelines, key=lambda best: median(level.audio_seconds_per_second for level in best))
    return [
        speed_within(repeat, base.p99_s) / base.audio_seconds_per_second
        for repeat, base in zip(levels[name], baseline, strict=True)
    ]


def in_process(checkpoint: str, threads: int, contents: list[bytes]) -> list[float]:
    """Return the seconds for each clip, decoded and predicted in this process."""
    from lakd_ray.audio import decode_audio
    from lakd_ray.inference.predictor import Predictor

    predictor = Predictor.load(checkpoint, threads=threads)
    latencies = []
    for content in contents:
        started = time.perf_counter()
        predictor.probabilities([decode_audio(content, source_name="a clip")])
        latencies.append(time.perf_counter() - started)
    return latencies


def main() -> None:
    """Measure all servers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backends", nargs="+", default=["torch", "onnx", "onnx-int8"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--gpus", type=int, choices=(0, 1), default=0)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Server(options.serve, options.checkpoint, options.threads, options.gpus))
        return
    names = [*PIPELINES, *options.backends, "no-op"]
    contents = clips(options.requests)
    audio = audio_seconds(contents)
    speeds: dict[str, list[float]] = {name: [] for name in names}
    worst: dict[str, list[float]] = {name: [] for name in names}
    alone: dict[str, list[float]] = {name: [] for name in [*names, "predictor"]}
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder), SMALL if options.small else BASE)
        for _ in range(options.repeats):
            alone["predictor"].append(1e3 * median(in_process(model, options.threads, contents[:12])[2:]))
            for name in names:
                with running(Server(name, model, options.threads, options.gpus)) as url:
                    asyncio.run(load(url, contents[:4], 2))
                    alone[name].append(1e3 * median(asyncio.run(load(url, contents[:12], 1))[1]))
                    seconds, latencies = asyncio.run(load(url, contents, options.concurrency))
                speeds[name].append(audio / seconds)
                worst[name].append(float(np.quantile(latencies, 0.99)))
                print(f"{name}: {speeds[name][-1]:.1f} audio-s/s, {alone[name][-1]:.0f} ms alone", file=sys.stderr)
    best = max(PIPELINES, key=lambda name: median(speeds[name]))
    print(f"{len(contents)} clips, {audio:.0f} s, concurrency {options.concurrency}, {options.threads} thread(s)\n")
    print(f"| | audio-s/s | of {best} | 99th percentile, s | one at a time, ms |\n|---|---|---|---|---|")
    for name in names:
        ratios = [speed / base for speed, base in zip(speeds[name], speeds[best], strict=True)]
        ratio = "" if name == "no-op" else spread(ratios, 2)
        print(f"| {name} | {spread(speeds[name])} | {ratio} | {spread(worst[name])} | {spread(alone[name])} |")
    print(f"| predictor | | | | {spread(alone['predictor'])} |")


if __name__ == "__main__":
    main()
