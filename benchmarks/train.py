"""Overhead of Ray Train over a bare training loop, start-up time, and speed with one and with two workers.

    python benchmarks/train.py [--epochs 12] [--repeats 3]
    python benchmarks/train.py --workload base    # on a GPU: noise, and a network of wav2vec2-base's size in bf16

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
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common import BASE, SMALL, has_gpu, single_rank, timed, write_checkpoint, write_noise_corpus
from figures import spread
from lakd_ray.cluster import experiment_session
from lakd_ray.config import Experiment, load_config
from lakd_ray.data import manifest as manifests
from lakd_ray.data import prepare
from lakd_ray.data.reader import AudioBatch, ShardSource, make_read_request, read_batches, unpack_signals
from lakd_ray.models import build_model
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.train.data_loader import RankDataLoader
from lakd_ray.train.engines import build_engine
from lakd_ray.train.step import Objective, TrainBatch, compute_losses
from utilization import UtilizationSampler


@dataclass(frozen=True)
class Workload:
    """A corpus, a network and their training.

    Attributes:
        name: `demo`, the demo's corpus and network; `base`, noise and a network of wav2vec2-base's size in bf16, on a
            GPU if there is one; `small`, the same with a tiny network, to test the benchmark.
        folder: folder of all files.
        epochs: number of epochs.
    """

    name: str
    folder: str
    epochs: int

    def experiment(self, seed: int = 0, *, epochs: int | None = None, workers: int = 1) -> Experiment:
        """Return the experiment; its teacher is a different run for every seed."""
        epochs = epochs or self.epochs
        if self.name == "demo":
            settings = [f"storage={self.folder}", f"seed={seed}", f"teacher.optim.epochs={epochs}"]
            settings += [f"train.workers={workers}", "languages=[en]", "corpora.0.options.languages=[en]"]
            return load_config("demo", [*settings, "distill.paradigms=[mtkd]"])
        recipe = {"model": {"pretrained": str(Path(self.folder, "model"))}, "optim": {"epochs": epochs}}
        split = {"folds": 4, "dev_speakers": 1}
        content = {
            "name": "benchmark", "storage": self.folder, "seed": seed, "languages": ["en"],
            "corpora": [{"name": "noise", "root": str(Path(self.folder, "corpus")), "split": split}],
            "teacher": recipe, "student": recipe, "audio": {"shard_utterances": 64},
            "train": {"workers": workers, "gpu": has_gpu(), "precision": "bf16"},
        }  # fmt: skip
        return Experiment.model_validate(content)

    def prepare(self) -> None:
        """Write the corpus and the shards; needs a Ray session."""
        if self.name != "demo":
            write_noise_corpus(Path(self.folder, "corpus"), 96 if self.name == "small" else 1600)
            write_checkpoint(Path(self.folder), SMALL if self.name == "small" else BASE)
        prepare.prepare_corpora(self.experiment())


def bare(workload: Workload) -> None:
    """Run the bare loop in this process and print the seconds of every epoch."""
    torch.set_num_threads(1)
    os.environ.setdefault("LOCAL_RANK", "0")
    with single_rank():
        config = workload.experiment()
        run, manifest = build_run_graph(config).teachers[0], manifests.load_manifest(config)
        loader = RankDataLoader(run, config, manifest, None, 0, 1)
        source = ShardSource(manifest.shards)
        model = build_model(run.recipe.model, run.emotions, seed=run.seed)
        steps = loader.steps_per_epoch * workload.epochs
        engine = build_engine(model, run.recipe.optim, config.train, total_steps=steps)
        for number in range(workload.epochs):
            plan = loader.epoch_plan(number)
            batches = [
                loader.collate(AudioBatch(group.epoch, group.split, rows, unpack_signals(table, source)), model)
                for group in plan.read_groups[0]
                for rows, table in zip(
                    group.batches, read_batches(make_read_request(manifest, group), source), strict=True
                )
            ]
            if has_gpu():
                batches = [batch.pin_memory() for batch in batches]
            counts = plan.utterances_per_step(1)

            def epoch(batches: list[TrainBatch] = batches, counts: list[int] = counts) -> None:
                for batch, count in zip(batches, counts, strict=True):
                    parts = compute_losses(engine.forward, batch.to(engine.device, engine.dtype), Objective())
                    engine.backward(parts.loss, count)
                    engine.step()

            print(f"epoch {timed(epoch)}", flush=True)
        engine.close()


def in_bare_loop(workload: Workload) -> list[float]:
    """Run the bare loop in a new process and return the seconds of every epoch but the first.

    Raises:
        RuntimeError: the process failed; the message has the end of its output.
    """
    command = [sys.executable, __file__, "--bare", workload.folder, "--workload", workload.name]
    done = subprocess.run([*command, "--epochs", str(workload.epochs)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the bare loop failed: {done.stderr[-2000:]}")
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("epoch ")][1:]


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
    def middles(self) -> list[tuple[float, float]]:
        """Start and end of the middle half of every epoch but the first; events arrive with a delay."""
        windows = []
        for at, event in self.events:
            if event["event"] == "epoch" and event["line"]["epoch"] > 1:
                line = event["line"]
                end = at - line["dev_seconds"]
                windows.append((end - 0.75 * line["seconds"], end - 0.25 * line["seconds"]))
        return windows

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


def compare_with_bare_loop(workload: Workload, add: Callable[..., Any]) -> None:
    """Train one run inside Ray Train, compare its epochs with the bare loop, and sample the device's utilization.

    Args:
        workload: the corpus and the network.
        add: takes the name of a figure, its values and options.
    """
    with experiment_session(workload.experiment()):
        workload.prepare()
        loop = in_bare_loop(workload)
        with UtilizationSampler() as sampler:
            _, log = trained(workload.experiment(1))
        _add_run(log, sampler, add)
        loop += in_bare_loop(workload)
    ratios = [line["seconds"] / median(loop) for line in log.lines[1:]]
    add("epoch inside Ray Train, of the bare loop's", ratios, digits=3, aim=1.03, at_most=True)


def _add_run(log: EventLog, sampler: UtilizationSampler, add: Callable[..., Any]) -> None:
    lines = log.lines[1:]
    waits = [line["seconds_data"] / line["seconds"] for line in lines]
    add("waiting for data and copying it, of an epoch", waits, digits=3, aim=0.02, at_most=True)
    memory = {"memory_gib": max(line["memory_mb"] for line in lines) / 1024}
    add("inside Ray Train, audio-s/s", [line["audio_seconds_per_second"] for line in lines], digits=0, **memory)
    add("inside Ray Train, TFLOP/s", [line["tflops"] for line in lines])
    busy = [sampler.busy_percent([window]) for window in log.middles]
    memory = {"memory_gib": sampler.peak_memory_gib}
    add(f"utilization of the device by {sampler.source}, %", busy, aim=95, **memory)


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
    parser.add_argument("--workload", choices=("demo", "base", "small"), default="demo")
    parser.add_argument("--bare", metavar="FOLDER", help="run only the bare loop; the benchmark calls this itself")
    options = parser.parse_args()
    if options.bare:
        bare(Workload(options.workload, options.bare, options.epochs))
        return
    with tempfile.TemporaryDirectory(prefix="lakd-bench-") as folder:
        workload = Workload(options.workload, folder, options.epochs)
        if options.workload == "demo":
            measure(workload, options.repeats)
        else:
            compare_with_bare_loop(
                workload, lambda name, values, **_: print(f"{name}: {spread(values, 3)}", flush=True)
            )


def measure(workload: Workload, repeats: int) -> None:
    """Run all repeats and print the results."""
    with experiment_session(workload.experiment()):
        workload.prepare()
    epochs, audio = workload.epochs, 0.0
    ratios: list[float] = []
    waits: list[float] = []
    memory: list[float] = []
    loading: list[dict[str, float]] = []
    speeds: dict[int, list[float]] = {1: [], 2: []}
    starts: dict[str, list[dict[str, float]]] = {"cold": [], "second in a session": []}
    empty: list[float] = []
    for repeat in range(repeats):
        loading.append(imports())
        loop = in_bare_loop(workload)
        with experiment_session(workload.experiment()):
            called_at, first = trained(workload.experiment(3 * repeat + 1, epochs=1))
            starts["cold"].append(start_up(called_at, first))
            called_at, second = trained(workload.experiment(3 * repeat + 2))
            starts["second in a session"].append(start_up(called_at, second))
            empty.append(empty_run(workload.folder))
            _, two = trained(workload.experiment(3 * repeat + 3, workers=2))
        loop += in_bare_loop(workload)
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
    print(f"time inside Ray Train, of the bare loop's: {spread(ratios, 3)}")
    print(f"of an epoch inside Ray Train, waiting for data and padding it, %: {spread(waits, 1)}")
    print(f"two workers, of the speed of one: {spread([b / a for a, b in zip(speeds[1], speeds[2], strict=True)], 2)}")
    print(f"audio-s/s with one worker: {spread(speeds[1], 0)}, with two: {spread(speeds[2], 0)}")
    print(f"peak memory of a worker, MB: {spread(memory, 0)}\n")
    print("| start-up to the first step, s | cold | second in a session |\n|---|---|---|")
    parts = list(starts["cold"][0])
    for part in parts:
        cells = [spread([seconds[part] for seconds in repeats], 1) for repeats in starts.values()]
        print(f"| {part} | {' | '.join(cells)} |")
    sums = [spread([sum(seconds.values()) for seconds in repeats], 1) for repeats in starts.values()]
    print(f"| together | {' | '.join(sums)} |")
    print(f"| an empty run of Ray Train, in total | | {spread(empty, 1)} |")
    for part in IMPORTS:
        cell = spread([seconds[part] for seconds in loading], 1)
        print(f"| importing {part}, in a separate process | {cell} | |")


if __name__ == "__main__":
    main()
