"""Overhead of Ray Train over a bare training loop, start-up time, and speed with one and with two workers.

    python benchmarks/train.py [--epochs 12] [--repeats 3]

The benchmark uses the demo's corpus and network, real shards, and DeepSpeed with ZeRO-1 and one thread per worker. Each
repeat measures, in this order:

    bare loop    the plan's batches decoded in advance, then only engine and loss, in a separate process
    Ray Train    a run of `lakd train-teachers`, streamed by Ray Data, with dev and checkpoints; the `seconds` of its
                 epochs count, from the second on, as the first waits for its stream to start
    bare loop    again, so that a slowdown of the machine does not bias the ratio

The ratio of a repeat is that of the medians. Start-up is from the call to the end of the first step: cold (in a new Ray
session), and for a second call in the same session. An empty TorchTrainer run shows the share of Ray Train itself, and
the imports of a worker are timed in a separate process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from lakd_ray.cluster import experiment_session
from lakd_ray.config import Experiment, load_config
from lakd_ray.data import manifest as manifests
from lakd_ray.data import prepare
from lakd_ray.data.reader import AudioBatch, ShardSource, make_read_request, read_batches, unpack_signals
from lakd_ray.models import build_model
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.train.data_loader import RankDataLoader
from lakd_ray.train.engines import build_engine
from lakd_ray.train.step import Objective, compute_losses

DEMO = "demo"


def experiment(folder: str, seed: int, epochs: int, workers: int) -> Experiment:
    """Return the demo with English only; its teacher is a different run for every seed."""
    settings = [f"storage={folder}", f"seed={seed}", f"teacher.optim.epochs={epochs}", f"train.workers={workers}"]
    english = ["languages=[en]", "corpora.0.options.languages=[en]"]
    return load_config(DEMO, [*settings, *english, "distill.paradigms=[mtkd]"])


def bare(folder: str, epochs: int) -> None:
    """Run the bare loop in this process and print the seconds of every epoch."""
    torch.set_num_threads(1)
    os.environ.setdefault("LOCAL_RANK", "0")
    with tempfile.TemporaryDirectory() as store:
        dist.init_process_group("gloo", init_method=f"file://{Path(store, 's')}", rank=0, world_size=1)
        config = experiment(folder, 0, epochs, 1)
        run, manifest = build_run_graph(config).teachers[0], manifests.load_manifest(config)
        loader = RankDataLoader(run, config, manifest, None, 0, 1)
        source = ShardSource(manifest.shards)
        model = build_model(run.recipe.model, run.emotions, seed=run.seed)
        steps = loader.steps_per_epoch * epochs
        engine = build_engine(model, run.recipe.optim, config.train, total_steps=steps)
        for number in range(epochs):
            plan = loader.epoch_plan(number)
            batches = [
                loader.collate(AudioBatch(group.epoch, group.split, rows, unpack_signals(table, source)))
                for group in plan.read_groups[0]
                for rows, table in zip(
                    group.batches, read_batches(make_read_request(manifest, group), source), strict=True
                )
            ]
            started = time.perf_counter()
            for batch, count in zip(batches, plan.utterances_per_step(1), strict=True):
                parts = compute_losses(engine.forward, batch.to(engine.device, engine.dtype), Objective())
                engine.backward(parts.loss, count)
                engine.step()
            print(json.dumps(time.perf_counter() - started), flush=True)
        dist.destroy_process_group()


def in_bare_loop(folder: str, epochs: int) -> list[float]:
    """Run the bare loop in a new process and return the seconds of every epoch but the first."""
    command = [sys.executable, __file__, "--bare", folder, "--epochs", str(epochs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.replace(".", "").isdigit()]
    return [float(line) for line in lines][1:]


class EventLog:
    """Training events of one call, with their times."""

    def __init__(self) -> None:
        self.events: list[tuple[float, dict[str, Any]]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        """Add an event with the present time."""
        self.events.append((time.perf_counter(), event))

    def when(self, kind: str) -> float:
        """Return the time of the first event of a kind."""
        return next(at for at, event in self.events if event["event"] == kind)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Metrics of every epoch."""
        return [event["line"] for _, event in self.events if event["event"] == "epoch"]


def trained(config: Experiment) -> tuple[float, EventLog]:
    """Train the experiment's first teacher; return the time of the call and the events."""
    from lakd_ray.launch.driver import train_tasks
    from lakd_ray.launch.worker import TrainingTask

    log, called_at = EventLog(), time.perf_counter()
    train_tasks([TrainingTask(config, build_run_graph(config).teachers[0])], name="bench", on_event=log)
    return called_at, log


def empty_run(folder: str) -> float:
    """Return the seconds of an empty run of Ray Train with one worker."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    started = time.perf_counter()
    TorchTrainer(
        lambda: None,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name=f"empty-{time.time()}", storage_path=folder),
    ).fit()
    return time.perf_counter() - started


IMPORTS = {
    "torch, ray.train": "ray.train.torch",
    "transformers' wav2vec2": "transformers.models.wav2vec2.modeling_wav2vec2",
    "DeepSpeed": "deepspeed",
}


def imports() -> dict[str, float]:
    """Return the seconds that a new process takes for each import of a worker."""
    script = "import importlib, sys, time\nfor name in sys.argv[1:]:\n    started = time.perf_counter()\n"
    script += "    importlib.import_module(name)\n    print('took', time.perf_counter() - started)\n"
    command = [sys.executable, "-W", "ignore", "-c", script, *IMPORTS.values()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("took ")]
    return dict(zip(IMPORTS, seconds, strict=True))


def start_up(called_at: float, log: EventLog) -> dict[str, float]:
    """Return the seconds from the call to the end of the first step, split at the start of the run in the worker."""
    line = log.lines[0]
    steps = line["steps"]
    first_epoch = log.when("epoch") - line["dev_seconds"] - line["seconds"]
    taken = log.when("started")
    return {
        "worker group: processes, imports, process group": taken - called_at,
        "run: manifest, model, engine, stream, first step": first_epoch + line["seconds"] / steps - taken,
    }


def main() -> None:
    """Parse the arguments and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bare", metavar="FOLDER", help="run only the bare loop; the benchmark calls this itself")
    options = parser.parse_args()
    if options.bare:
        bare(options.bare, options.epochs)
        return
    with tempfile.TemporaryDirectory(prefix="lakd-bench-") as folder:
        measure(folder, options.epochs, options.repeats)


def measure(folder: str, epochs: int, repeats: int) -> None:
    """Run all repeats and print the results."""
    config = experiment(folder, 0, epochs, 1)
    with experiment_session(config):
        prepare.prepare_corpora(config)
    audio = 0.0
    ratios: list[float] = []
    waits: list[float] = []
    memory: list[float] = []
    loading: list[dict[str, float]] = []
    speeds: dict[int, list[float]] = {1: [], 2: []}
    starts: dict[str, list[dict[str, float]]] = {"cold": [], "second in a session": []}
    empty: list[float] = []
    for repeat in range(repeats):
        loading.append(imports())
        loop = in_bare_loop(folder, epochs)
        with experiment_session(config):
            called_at, first = trained(experiment(folder, 3 * repeat + 1, 1, 1))
            starts["cold"].append(start_up(called_at, first))
            called_at, second = trained(experiment(folder, 3 * repeat + 2, epochs, 1))
            starts["second in a session"].append(start_up(called_at, second))
            empty.append(empty_run(folder))
            _, two = trained(experiment(folder, 3 * repeat + 3, epochs, 2))
        loop += in_bare_loop(folder, epochs)
        lines = second.lines[1:]
        audio = lines[0]["audio_seconds"]
        ratios.append(median(line["seconds"] for line in lines) / median(loop))
        waits.append(100 * median(line["seconds_data"] / line["seconds"] for line in lines))
        for workers, events in ((1, second), (2, two)):
            speeds[workers].append(median(line["audio_seconds_per_second"] for line in events.lines[1:]))
        memory.append(max(line["memory_mb"] for line in second.lines))
        print(f"{repeat + 1}/{repeats}: Ray Train takes {ratios[-1]:.3f} of the bare loop", flush=True)
    _print(audio, epochs, ratios, waits, starts, loading, empty, speeds, memory)


def _print(
    audio: float,
    epochs: int,
    ratios: list[float],
    waits: list[float],
    starts: dict[str, list[dict[str, float]]],
    loading: list[dict[str, float]],
    empty: list[float],
    speeds: dict[int, list[float]],
    memory: list[float],
) -> None:
    print(f"\n{epochs - 1} epochs of {audio:.0f} s of audio; {len(ratios)} repeats; median (range)\n")
    print(f"time inside Ray Train, of the bare loop's: {_range(ratios, 3)}")
    print(f"of an epoch inside Ray Train, waiting for data and padding it, %: {_range(waits, 1)}")
    print(f"two workers, of the speed of one: {_range([b / a for a, b in zip(speeds[1], speeds[2], strict=True)], 2)}")
    print(f"audio-s/s with one worker: {_range(speeds[1], 0)}, with two: {_range(speeds[2], 0)}")
    print(f"peak memory of a worker, MB: {_range(memory, 0)}\n")
    print("| start-up to the first step, s | cold | second in a session |\n|---|---|---|")
    parts = list(starts["cold"][0])
    for part in parts:
        cells = [_range([seconds[part] for seconds in repeats], 1) for repeats in starts.values()]
        print(f"| {part} | {' | '.join(cells)} |")
    sums = [_range([sum(seconds.values()) for seconds in repeats], 1) for repeats in starts.values()]
    print(f"| together | {' | '.join(sums)} |")
    print(f"| an empty run of Ray Train, in total | | {_range(empty, 1)} |")
    for part in IMPORTS:
        cell = _range([seconds[part] for seconds in loading], 1)
        print(f"| importing {part}, in a separate process | {cell} | |")


def _range(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
