"""Speed and accuracy of the predictor's backends, compared with torch in fp32 in the same run.

    python benchmarks/backends.py [--threads 1] [--repeats 3] [--small]
    python benchmarks/backends.py --checkpoint FOLDER --experiment FILE --storage DIR

Without a checkpoint, the network has the size of wav2vec2-base and random weights, on which speed does not depend. The
input is clips of noise of 2 to 10 s, in batches of one and of eight; the backends take turns in each repeat. Speeds are
audio seconds per second, ratios are to torch in fp32 in the same repeat, as median and range.

With a checkpoint, the benchmark also prints its UR on the experiment's test utterances (after `lakd prepare`) with each
backend, and the largest change of a probability. `--accuracy` skips the speed.
"""

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from common import BASE, SMALL, write_checkpoint
from figures import spread
from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, Wave
from lakd_ray.config import Backend, load_config
from lakd_ray.inference.backend_accuracy import compare_backends, load_test_set
from lakd_ray.inference.predictor import Predictor
from lakd_ray.models import onnx_export
from lakd_ray.ops import release

PLAIN: Backend = "torch"


def clips() -> list[Wave]:
    """Return eight clips of 2 to 10 s, in random order."""
    random = np.random.default_rng(0)
    seconds = random.permutation(np.linspace(2, 10, 8))
    return [0.1 * random.standard_normal(int(length * SAMPLE_RATE), dtype=np.float32) for length in seconds]


def speeds(predictors: dict[Backend, Predictor], repeats: int) -> dict[Backend, dict[int, list[float]]]:
    """Return audio seconds per second by backend and batch size, one value per repeat."""
    waves = clips()
    seconds = sum(map(len, waves)) / SAMPLE_RATE
    results: dict[Backend, dict[int, list[float]]] = {name: {1: [], 8: []} for name in predictors}
    for predictor in predictors.values():
        predictor.logits(waves[:1])  # the first call is slow
    for repeat in range(repeats):
        for size in (1, 8):
            for name, predictor in predictors.items():
                started = time.perf_counter()
                for start in range(0, len(waves), size):
                    predictor.logits(waves[start : start + size])
                results[name][size].append(seconds / (time.perf_counter() - started))
        for name, by_size in results.items():
            text = ", ".join(f"batch of {size}: {values[-1]:.2f}" for size, values in by_size.items())
            print(f"{repeat + 1}/{repeats} {name}: {text} audio-s/s", flush=True)
    return results


def print_speeds(results: dict[Backend, dict[int, list[float]]]) -> None:
    """Print the speeds as the table in docs/how-to/export.md."""
    print("\n| backend | batch of 1, audio-s/s | of torch | batch of 8, audio-s/s | of torch |\n|---|---|---|---|---|")
    for name, by_size in results.items():
        cells = []
        for size, values in by_size.items():
            ratios = [value / base for value, base in zip(values, results[PLAIN][size], strict=True)]
            cells += [spread(values), spread(ratios, 2)]
        print(f"| `{name}` | {' | '.join(cells)} |")


def print_accuracy(predictors: dict[Backend, Predictor], options: argparse.Namespace) -> None:
    """Print the accuracy on test as the table in docs/how-to/export.md."""
    config = load_config(options.experiment, [f"storage={options.storage}"] if options.storage else [])
    reference = predictors[PLAIN]
    test = load_test_set(config, reference.metadata)
    count, seconds = len(test.waves_N), test.audio_seconds
    print(f"\n{reference.model_id}: {count} test utterances of {config.name}, {seconds:.0f} s of audio\n")
    print("| backend | UR, % | changed predictions | largest change of a probability |\n|---|---|---|---|")
    for name, predictor in predictors.items():
        accuracy = compare_backends(reference, predictor, test)
        cells = [f"{100 * accuracy.UR_backend:.1f}", str(accuracy.changed_predictions)]
        print(f"| `{name}` | {' | '.join(cells)} | {accuracy.max_probability_change:.2g} |")


def main() -> None:
    """Measure the backends and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="use a tiny network, to test the benchmark")
    parser.add_argument("--backends", nargs="+", choices=get_args(Backend), default=get_args(Backend))
    parser.add_argument("--checkpoint", help="use this checkpoint folder instead of random weights")
    parser.add_argument("--experiment", help="with --checkpoint: the experiment that trained it")
    parser.add_argument("--storage", help="with --experiment: its storage, if not the one in the file")
    parser.add_argument("--accuracy", action="store_true", help="with --experiment: measure accuracy only")
    options = parser.parse_args()
    if options.experiment and not options.checkpoint:
        parser.error("--experiment needs a trained model: give its --checkpoint")
    names: list[Backend] = [PLAIN, *(name for name in options.backends if name != PLAIN)]
    with tempfile.TemporaryDirectory(prefix="lakd-") as folder:
        model = options.checkpoint or write_checkpoint(Path(folder), SMALL if options.small else BASE)
        if not storage.exists(storage.join(model, onnx_export.INT8_MODEL_FILE)):
            started = time.perf_counter()
            # once for all backends that run a graph
            model = release.export_checkpoint(model, str(Path(folder, "released")), int8=True)
            print(f"exported in {time.perf_counter() - started:.1f} s", flush=True)
        predictors = {}
        for name in names:
            started = time.perf_counter()
            predictors[name] = Predictor.load(model, threads=options.threads, backend=name)
            print(f"{name}: loaded in {time.perf_counter() - started:.1f} s", flush=True)
            gc.collect()
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
        if not options.accuracy:
            print_speeds(speeds(predictors, options.repeats))
        if options.experiment:
            print_accuracy(predictors, options)


if __name__ == "__main__":
    main()
