"""Training inside Ray Train against the same steps in a bare loop; start-up; one and two workers.

    python benchmarks/train.py [--epochs 12] [--repeats 3]

The demo's corpus and network, real shards, DeepSpeed with ZeRO-1 and one thread for a worker. In each repeat, in turn:

    bare loop    the plan's batches decoded beforehand, then nothing but engine and loss, in a process of its own
    Ray Train    a run as `lakd train-teachers` does it: streamed by Ray Data, dev and checkpoints beside; the epochs' own
                 `seconds` count, from the second epoch on, as the first waits for its stream to start
    bare loop    once more, so that a machine that gets slower meanwhile does not count

and a repeat's ratio is that of the medians. Start-up is from the call to the first step's end: cold (a new Ray
session), and of a second call in the same session. An empty TorchTrainer run beside says how much of it Ray Train takes
by itself, and what a worker imports is timed in a process of its own.
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
    """The demo with English alone, whose teacher is another run for every seed."""
    settings = [f"storage={folder}", f"seed={seed}", f"teacher.optim.epochs={epochs}", f"train.workers={workers}"]
    english = ["languages=[en]", "corpora.0.options.languages=[en]"]
    return load_config(DEMO, [*settings, *english, "distill.paradigms=[mtkd]"])


def bare(folder: str, epochs: int) -> None:
    """In its own process: prints seconds of every epoch."""
    torch.set_num_threads(1)
    os.environ.setdefault("LOCAL_RANK", "0")
    with tempfile.TemporaryDirectory() as store:
        dist.init_process_group("gloo", init_method=f"file://{Path(store, 's')}", rank=0, world_size=1)
        config = experiment(folder, 0, epochs, 1)
        run, manifest = build_run_graph(config).teachers[0], manifests.load_manifest(config)
        feed = RankDataLoader(run, config, manifest, None, 0, 1)
        source = ShardSource(manifest.shards)
        model = build_model(run.recipe.model, run.emotions, seed=run.seed)
        steps = feed.steps_per_epoch * epochs
        engine = build_engine(model, run.recipe.optim, config.train, total_steps=steps)
        for number in range(epochs):
            plan = feed.epoch_plan(number)
            batches = [
                feed.collate(AudioBatch(window.epoch, window.split, rows, unpack_signals(table, source)))
                for window in plan.read_groups[0]
                for rows, table in zip(
                    window.batches, read_batches(make_read_request(manifest, window), source), strict=True
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
    """Seconds of every epoch but the first."""
    command = [sys.executable, __file__, "--bare", folder, "--epochs", str(epochs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.replace(".", "").isdigit()]
    return [float(line) for line in lines][1:]


class Watched:
    """When things happened in one call of the teachers stage."""

    def __init__(self) -> None:
        self.events: list[tuple[float, dict[str, Any]]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        """Note an event."""
        self.events.append((time.perf_counter(), event))

    def when(self, kind: str) -> float:
        """Of the first event of a kind."""
        return next(at for at, event in self.events if event["event"] == kind)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Every epoch's."""
        return [event["line"] for _, event in self.events if event["event"] == "epoch"]


def trained(config: Experiment) -> tuple[float, Watched]:
    """Train the experiment's first teacher; returns when it was asked for, and what happened."""
    from lakd_ray.launch.driver import train_tasks
    from lakd_ray.launch.worker import TrainingTask

    watched, asked = Watched(), time.perf_counter()
    train_tasks([TrainingTask(config, build_run_graph(config).teachers[0])], name="bench", on_event=watched)
    return asked, watched


def empty_run(folder: str) -> float:
    """Seconds that Ray Train takes for nothing, one worker that imports torch alone."""
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
    """Seconds that a fresh process takes for what every worker imports, one after the other."""
    script = "import importlib, sys, time\nfor name in sys.argv[1:]:\n    started = time.perf_counter()\n"
    script += "    importlib.import_module(name)\n    print('took', time.perf_counter() - started)\n"
    command = [sys.executable, "-W", "ignore", "-c", script, *IMPORTS.values()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    took = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("took ")]
    return dict(zip(IMPORTS, took, strict=True))


def start_up(asked: float, watched: Watched) -> dict[str, float]:
    """From the call to the end of the first step, split at the moment when the worker takes its run."""
    line = watched.lines[0]
    steps = line["steps"]
    first_epoch = watched.when("epoch") - line["dev_seconds"] - line["seconds"]
    taken = watched.when("started")
    return {
        "worker group: processes, imports, process group": taken - asked,
        "run: manifest, model, engine, stream, first step": first_epoch + line["seconds"] / steps - taken,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bare", metavar="FOLDER", help="the bare loop alone; used by the benchmark itself")
    options = parser.parse_args()
    if options.bare:
        bare(options.bare, options.epochs)
        return
    with tempfile.TemporaryDirectory(prefix="lakd-bench-") as folder:
        measure(folder, options.epochs, options.repeats)


def measure(folder: str, epochs: int, repeats: int) -> None:
    """All of it."""
    config = experiment(folder, 0, epochs, 1)
    with experiment_session(config):
        prepare.run(config)
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
            asked, first = trained(experiment(folder, 3 * repeat + 1, 1, 1))
            starts["cold"].append(start_up(asked, first))
            asked, second = trained(experiment(folder, 3 * repeat + 2, epochs, 1))
            starts["second in a session"].append(start_up(asked, second))
            empty.append(empty_run(folder))
            _, two = trained(experiment(folder, 3 * repeat + 3, epochs, 2))
        loop += in_bare_loop(folder, epochs)
        lines = second.lines[1:]
        audio = lines[0]["audio_seconds"]
        ratios.append(median(line["seconds"] for line in lines) / median(loop))
        waits.append(100 * median(line["seconds_data"] / line["seconds"] for line in lines))
        for workers, each in ((1, second), (2, two)):
            speeds[workers].append(median(line["audio_seconds_per_second"] for line in each.lines[1:]))
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
        cells = [_range([each[part] for each in some], 1) for some in starts.values()]
        print(f"| {part} | {' | '.join(cells)} |")
    sums = [_range([sum(each.values()) for each in some], 1) for some in starts.values()]
    print(f"| together | {' | '.join(sums)} |")
    print(f"| an empty run of Ray Train, all of it | | {_range(empty, 1)} |")
    for part in IMPORTS:
        cell = _range([each[part] for each in loading], 1)
        print(f"| importing {part}, in a process of its own | {cell} | |")


def _range(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
