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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import soundfile

RATE = 16_000
START_S = 180.0
BASE: dict[str, Any] = {"model_type": "wav2vec2"}
SMALL = BASE | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip


def clips(count: int) -> list[bytes]:
    """Return WAV files of 2 to 10 s."""
    random = np.random.default_rng(0)
    files = []
    for seconds in random.uniform(2, 10, count):
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.1 * random.standard_normal(round(seconds * RATE)), RATE, format="WAV")
        files.append(buffer.getvalue())
    return files


def make_checkpoint(folder: Path, small: bool) -> str:
    """Save a checkpoint with random weights and return its folder."""
    from lakd_ray.config import ModelConfig
    from lakd_ray.data.provenance import Provenance
    from lakd_ray.labels import PAPER_EMOTIONS
    from lakd_ray.models import CheckpointMetadata, build_model, save_checkpoint

    model = build_model(
        ModelConfig(config=SMALL if small else BASE, freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0
    )
    metadata = CheckpointMetadata("benchmark", PAPER_EMOTIONS, ("en",), Provenance(), {})
    (folder / "scratch").mkdir()
    save_checkpoint(str(folder / "model"), model.network, metadata, scratch=folder / "scratch")
    return str(folder / "model")


def serve(name: str, checkpoint: str, threads: int) -> None:
    """Run a server until standard input closes, and print its URL."""
    if name.startswith("pipeline"):
        _serve_pipeline(checkpoint, threads, one_at_a_time=name.endswith("lock"))
        return
    import ray

    ray.init(address="local", num_cpus=threads, include_dashboard=False, log_to_driver=False)
    if name == "no-op":
        print(_no_op(), flush=True)
    else:
        from lakd_ray.config import Experiment
        from lakd_ray.serve import deploy

        recipe = {"model": {"pretrained": "unused"}}
        settings = {"port": 0, "cpus": threads, "backend": name}
        content = {"name": "b", "languages": ["en"], "corpora": [{"name": "c", "root": "c"}], "serve": settings}
        print(
            deploy.start(Experiment.model_validate({**content, "teacher": recipe, "student": recipe}), checkpoint),
            flush=True,
        )
    sys.stdin.read()


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


def _serve_pipeline(checkpoint: str, threads: int, *, one_at_a_time: bool) -> None:
    import socket
    import threading
    from contextlib import nullcontext

    import torch
    import uvicorn
    from fastapi import Body, FastAPI
    from transformers import pipeline

    torch.set_num_threads(threads)
    classify = pipeline("audio-classification", model=checkpoint, device="cpu")
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
def running(name: str, checkpoint: str, threads: int) -> Iterator[str]:
    """Start a server in a process and yield its URL."""
    command = [sys.executable, __file__, "--serve", name, "--checkpoint", checkpoint, "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("http"):
                    break
            else:
                raise SystemExit(f"{name} did not start")
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


def spread(values: list[float], digits: int = 1) -> str:
    """Format the median and the range of values."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measure all servers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backends", nargs="+", default=["torch", "onnx", "onnx-int8"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.checkpoint, options.threads)
        return
    names = ["pipeline", "pipeline, lock", *options.backends, "no-op"]
    contents = clips(options.requests)
    audio = sum(len(content) - 44 for content in contents) / 2 / RATE
    speeds: dict[str, list[float]] = {name: [] for name in names}
    worst: dict[str, list[float]] = {name: [] for name in names}
    alone: dict[str, list[float]] = {name: [] for name in [*names, "predictor"]}
    with tempfile.TemporaryDirectory() as folder:
        model = make_checkpoint(Path(folder), options.small)
        for _ in range(options.repeats):
            alone["predictor"].append(1e3 * median(in_process(model, options.threads, contents[:12])[2:]))
            for name in names:
                with running(name, model, options.threads) as url:
                    asyncio.run(load(url, contents[:4], 2))
                    alone[name].append(1e3 * median(asyncio.run(load(url, contents[:12], 1))[1]))
                    seconds, latencies = asyncio.run(load(url, contents, options.concurrency))
                speeds[name].append(audio / seconds)
                worst[name].append(float(np.quantile(latencies, 0.99)))
                print(f"{name}: {speeds[name][-1]:.1f} audio-s/s, {alone[name][-1]:.0f} ms alone", file=sys.stderr)
    best = max(("pipeline", "pipeline, lock"), key=lambda name: median(speeds[name]))
    print(f"{len(contents)} clips, {audio:.0f} s, concurrency {options.concurrency}, {options.threads} thread(s)\n")
    print(f"| | audio-s/s | of {best} | 99th percentile, s | one at a time, ms |\n|---|---|---|---|---|")
    for name in names:
        ratios = [speed / base for speed, base in zip(speeds[name], speeds[best], strict=True)]
        ratio = "" if name == "no-op" else spread(ratios, 2)
        print(f"| {name} | {spread(speeds[name])} | {ratio} | {spread(worst[name])} | {spread(alone[name])} |")
    print(f"| predictor | | | | {spread(alone['predictor'])} |")


if __name__ == "__main__":
    main()
