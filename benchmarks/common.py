"""The input, the networks and the measurements that the benchmarks share."""

import contextlib
import csv
import functools
import gc
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.distributed as dist

from lakd_ray.devices import process_group_backend, select_device
from lakd_ray.labels import PAPER_EMOTIONS

RATE = 16_000
BASE: dict[str, Any] = {"model_type": "wav2vec2"}
"""The transformers configuration of wav2vec2-base."""
SMALL = BASE | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
"""A tiny network, to test the benchmarks themselves."""


@functools.cache
def device() -> torch.device:
    """Return the GPU, or the CPU on a machine without one."""
    return select_device()


def has_gpu() -> bool:
    """Return whether there is a GPU."""
    return device().type == "cuda"


def synchronize() -> None:
    """Wait until the GPU has finished all work."""
    if has_gpu():
        torch.cuda.synchronize()


def timed(run: Callable[[], object]) -> float:
    """Return the seconds of a call, to the end of the work that it starts on the GPU."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def reset_memory() -> None:
    """Free what is not used any more, and restart the measurement of peak memory."""
    gc.collect()
    if has_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gib() -> float:
    """Return the peak memory of the GPU in this process since `reset_memory`; without a GPU, of the process."""
    if has_gpu():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextlib.contextmanager
def single_rank() -> Iterator[None]:
    """Create a process group of one rank, with NCCL if there is a GPU."""
    with tempfile.TemporaryDirectory(prefix="lakd-") as folder:
        backend = process_group_backend(device().type)
        dist.init_process_group(backend, init_method=f"file://{Path(folder, 'store')}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@contextlib.contextmanager
def without_launcher() -> Iterator[None]:
    """Hide from accelerate that there is a process group: a single process needs no DistributedDataParallel."""
    rank = os.environ.pop("LOCAL_RANK", None)
    yield
    if rank is not None:
        os.environ["LOCAL_RANK"] = rank


def random_lengths(count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return lengths in seconds distributed like those of IEMOCAP: log-normal, mean 4.5 s, cut at 20 s."""
    random = np.random.default_rng(0)
    return np.clip(random.lognormal(np.log(4.5) - 0.7**2 / 2, 0.7, count), 0.5, 20)


def write_noise_corpus(folder: Path, clips: int, speakers: int = 8) -> None:
    """Write WAV files of noise with the lengths of `random_lengths`, and their manifest for the csv importer."""
    random = np.random.default_rng(1)
    folder.mkdir(parents=True)
    rows = [("path", "emotion", "language", "speaker")]
    for index, seconds in enumerate(random_lengths(clips)):
        noise_T = 3000 * random.standard_normal(int(seconds * RATE), dtype=np.float32)
        soundfile.write(folder / f"{index:05d}.wav", noise_T.astype(np.int16), RATE)
        emotion, speaker = PAPER_EMOTIONS[index % 4], f"s{index // 4 % speakers}"
        rows.append((f"{index:05d}.wav", emotion, "en", speaker))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_checkpoint(folder: Path, architecture: dict[str, Any]) -> str:
    """Save a checkpoint with random weights as FOLDER/model and return its location."""
    from lakd_ray.config import ModelConfig
    from lakd_ray.data.provenance import Provenance
    from lakd_ray.models import CheckpointMetadata, build_model, save_checkpoint

    model = build_model(ModelConfig(config=architecture, freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0)
    metadata = CheckpointMetadata("benchmark", PAPER_EMOTIONS, ("en",), Provenance(), {})
    (folder / "scratch").mkdir(parents=True)
    save_checkpoint(str(folder / "model"), model.network, metadata, scratch=folder / "scratch")
    return str(folder / "model")
