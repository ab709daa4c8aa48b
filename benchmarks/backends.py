"""What the predictor's backends gain in speed and cost in accuracy, against torch in fp32 in the same run.

    python benchmarks/backends.py [--threads 1] [--repeats 3] [--small]
    python benchmarks/backends.py --checkpoint FOLDER --experiment FILE --storage DIR

Without a checkpoint: a network of wav2vec2-base's size with random weights, for speed does not depend on them. Clips of
noise, 2 to 10 s, one at a time and eight together; contestants take turns in each repeat. Speeds are audio seconds per
second, ratios those to torch fp32 of the same repeat, median and range.

With one: the same, and its UR on the experiment's test utterances (whose `prepare` has run) by each backend, with the
largest difference of a probability. `--accuracy` leaves the speed out.
"""

import argparse
import gc
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import torch

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, Wave
from lakd_ray.config import Backend, ModelConfig, load_config
from lakd_ray.data.provenance import Provenance
from lakd_ray.inference.backend_accuracy import compare_backends, load_test_set
from lakd_ray.inference.predictor import Predictor
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import CheckpointMetadata, build_model, onnx_export, save_checkpoint
from lakd_ray.ops import release

BASE: dict[str, Any] = {"model_type": "wav2vec2"}
SMALL = BASE | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
PLAIN: Backend = "torch"


def clips() -> list[Wave]:
    """Eight, of 2 to 10 s, in no order of length."""
    random = np.random.default_rng(0)
    seconds = random.permutation(np.linspace(2, 10, 8))
    return [0.1 * random.standard_normal(int(each * SAMPLE_RATE), dtype=np.float32) for each in seconds]


def checkpoint(folder: Path, architecture: dict[str, Any]) -> str:
    """A sealed one with random weights."""
    model = build_model(ModelConfig(config=architecture, freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0)
    (folder / "scratch").mkdir()
    card = CheckpointMetadata("random", PAPER_EMOTIONS, ("en",), Provenance(), {})
    save_checkpoint(str(folder / "model"), model.network, card, scratch=folder / "scratch")
    return str(folder / "model")


def speeds(predictors: dict[Backend, Predictor], repeats: int) -> dict[Backend, dict[int, list[float]]]:
    """Audio seconds per second by backend and size of the batch, one for each repeat."""
    waves = clips()
    seconds = sum(map(len, waves)) / SAMPLE_RATE
    found: dict[Backend, dict[int, list[float]]] = {name: {1: [], 8: []} for name in predictors}
    for predictor in predictors.values():
        predictor.logits(waves[:1])  # the first call is slow
    for repeat in range(repeats):
        for size in (1, 8):
            for name, predictor in predictors.items():
                started = time.perf_counter()
                for start in range(0, len(waves), size):
                    predictor.logits(waves[start : start + size])
                found[name][size].append(seconds / (time.perf_counter() - started))
        for name, by_size in found.items():
            told = ", ".join(f"batch of {size}: {each[-1]:.2f}" for size, each in by_size.items())
            print(f"{repeat + 1}/{repeats} {name}: {told} audio-s/s", flush=True)
    return found


def print_speeds(found: dict[Backend, dict[int, list[float]]]) -> None:
    """As a table of docs/how-to/export.md."""
    print("\n| backend | batch of 1, audio-s/s | of torch | batch of 8, audio-s/s | of torch |\n|---|---|---|---|---|")
    for name, by_size in found.items():
        cells = []
        for size, each in by_size.items():
            ratios = [one / base for one, base in zip(each, found[PLAIN][size], strict=True)]
            cells += [spread(each, ".1f"), spread(ratios, ".2f")]
        print(f"| `{name}` | {' | '.join(cells)} |")


def spread(values: list[float], form: str) -> str:
    """Median and range."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def print_accuracy(predictors: dict[Backend, Predictor], options: argparse.Namespace) -> None:
    """On test, as a table of docs/how-to/export.md."""
    config = load_config(options.experiment, [f"storage={options.storage}"] if options.storage else [])
    plain = predictors[PLAIN]
    heard = load_test_set(config, plain.metadata)
    print(
        f"\n{plain.model_id}: {len(heard.waves_N)} test utterances of {config.name}, {heard.audio_seconds:.0f} s of audio\n"
    )
    print("| backend | UR, % | other answers | largest change of a probability |\n|---|---|---|---|")
    for name, predictor in predictors.items():
        paid = compare_backends(plain, predictor, heard)
        print(
            f"| `{name}` | {100 * paid.UR_backend:.1f} | {paid.changed_predictions} | {paid.max_probability_change:.2g} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a tiny network, to see whether the benchmark works")
    parser.add_argument("--backends", nargs="+", choices=get_args(Backend), default=get_args(Backend))
    parser.add_argument("--checkpoint", help="a sealed checkpoint in place of a random network")
    parser.add_argument("--experiment", help="with --checkpoint: the experiment file that it was trained by")
    parser.add_argument("--storage", help="with --experiment: its storage, if not the file's")
    parser.add_argument("--accuracy", action="store_true", help="with --experiment: accuracy alone")
    options = parser.parse_args()
    if options.experiment and not options.checkpoint:
        parser.error("--experiment judges a trained model: name its --checkpoint")
    names: list[Backend] = [PLAIN, *(name for name in options.backends if name != PLAIN)]
    with tempfile.TemporaryDirectory(prefix="lakd-") as folder:
        place = options.checkpoint or checkpoint(Path(folder), SMALL if options.small else BASE)
        if not storage.exists(storage.join(place, onnx_export.INT8_MODEL_FILE)):
            started = time.perf_counter()
            place = release.export_checkpoint(
                place, str(Path(folder, "released")), int8=True
            )  # once for both that take a graph
            print(f"exported in {time.perf_counter() - started:.1f} s", flush=True)
        predictors = {}
        for name in names:
            started = time.perf_counter()
            predictors[name] = Predictor.load(place, threads=options.threads, backend=name)
            print(f"{name}: loaded in {time.perf_counter() - started:.1f} s", flush=True)
            gc.collect()
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
        if not options.accuracy:
            print_speeds(speeds(predictors, options.repeats))
        if options.experiment:
            print_accuracy(predictors, options)


if __name__ == "__main__":
    main()
