"""Speed of `prepare` and of streaming, compared with plain loops on the same files in the same run.

    python benchmarks/data.py [--clips 1200] [--repeats 3]

The corpus is synthesized speech in WAV files at 22 kHz, concatenated to lengths like those of IEMOCAP (log-normal, mean
4.5 s, cut at 20 s). Speeds are audio seconds per second, as median and range over the repeats; variants take turns in
each repeat. Ray runs before anything is timed. A stream is timed from its start to its last batch: over a shorter time,
batches decoded ahead would make it look faster than it is.

    prepare      plain loop: soundfile reads, torchaudio resamples, soundfile encodes FLAC, one Parquet file
    stream       plain loop: soundfile decodes the shards' FLAC entry by entry, to floats
                 DataLoader: torch's, one worker per core, soundfile in the dataset, random batches of 16, padded
"""

import argparse
import csv
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, encode_flac, resample, to_int16
from lakd_ray.cluster import experiment_session
from lakd_ray.config import Experiment
from lakd_ray.corpora.espeak import synthesis
from lakd_ray.data import manifest as manifests
from lakd_ray.data import prepare
from lakd_ray.data.batch_plan import ReadGroup, padded_and_unpadded_seconds, plan_training_epoch
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.reader import stream_batches
from lakd_ray.models import pad_batch

SPEAKERS = 8
EPOCHS = (1, 12)  # of one stream


def make_corpus(folder: Path, clips: int) -> None:
    """Write WAV files of random lengths and their manifest."""
    parts = synthesis.synthesize_corpus(folder / "parts", languages=("en",), speakers=SPEAKERS, sentences=8)
    with parts.open(newline="") as file:
        synthesized = [(row, soundfile.read(parts.parent / row["path"], dtype="int16")) for row in csv.DictReader(file)]
    random = np.random.default_rng(0)
    rows = [("path", "emotion", "language", "speaker")]
    (folder / "corpus").mkdir()
    for index in range(clips):
        seconds = min(20.0, max(0.5, random.lognormal(np.log(4.5) - 0.7**2 / 2, 0.7)))
        row, (_, rate) = synthesized[random.integers(len(synthesized))]
        own = [wave for other, (wave, _) in synthesized if other["speaker"] == row["speaker"]]
        joined = np.concatenate([own[number] for number in random.integers(len(own), size=24)])
        soundfile.write(folder / "corpus" / f"{index:05d}.wav", joined[: round(seconds * rate)], rate)
        rows.append((f"{index:05d}.wav", row["emotion"], "en", row["speaker"]))
    with (folder / "corpus" / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def experiment(folder: Path, name: str) -> Experiment:
    """Return an experiment with the corpus and unused models."""
    recipe = {"model": {"pretrained": "none"}}
    corpora = [{"name": "c", "root": str(folder / "corpus"), "split": {"folds": 4, "dev_speakers": 1}}]
    audio = {"shard_utterances": 256, "duplicates": "keep", "max_quarantined_fraction": 1.0}
    content = {"name": name, "storage": str(folder), "languages": ["en"], "corpora": corpora, "audio": audio}
    return Experiment.model_validate({**content, "teacher": recipe, "student": recipe})


def plain_prepare(folder: Path, name: str) -> None:
    """Convert the corpus in the simplest way: one loop and one Parquet file."""
    rows = []
    for file in sorted((folder / "corpus").glob("*.wav")):
        wave_TC, rate = soundfile.read(file, dtype="float32", always_2d=True)
        rows.append({"name": file.name, "audio": encode_flac(to_int16(resample(wave_TC.mean(axis=1), rate)))})
    storage.write_table(str(folder / f"{name}.parquet"), pa.Table.from_pylist(rows))


def plain_stream(manifest: Manifest) -> float:
    """Decode every entry of the shards in this process and return the audio seconds."""
    samples = 0
    for location in manifest.shards:
        for content in storage.read_table(location, columns=["audio"])["audio"]:
            wave_T, _ = soundfile.read(io.BytesIO(content.as_py()), dtype="float32")
            samples += len(wave_T)
    return samples / SAMPLE_RATE


class Files(Dataset[torch.Tensor]):
    """Dataset of the shards' entries for torch's DataLoader."""

    def __init__(self, manifest: Manifest) -> None:
        tables = [storage.read_table(location, columns=["audio"])["audio"] for location in manifest.shards]
        self._contents = [content for table in tables for content in table.to_pylist()]

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, index: int) -> torch.Tensor:
        wave_T, _ = soundfile.read(io.BytesIO(self._contents[index]), dtype="float32")
        return torch.from_numpy(wave_T)


def torch_loader(manifest: Manifest, workers: int) -> float:
    """Load an epoch of random batches of 16 and return the audio seconds, without padding."""
    loader = DataLoader(Files(manifest), batch_size=16, shuffle=True, num_workers=workers, collate_fn=pad_batch)
    return sum(float(lengths_B.sum()) for _, lengths_B in loader) / SAMPLE_RATE


def ray_stream(manifest: Manifest, config: Experiment, cores: int, epochs: int) -> float:
    """Stream some epochs of planned batches and return the audio seconds."""
    rows = np.arange(len(manifest.table))
    read_groups: list[ReadGroup] = []
    for epoch in range(epochs):
        plan = plan_training_epoch(manifest, rows, config.batch, seed=0, epoch=epoch, world_size=1)
        read_groups += plan.read_groups[0]
    samples = 0
    for batch in stream_batches(manifest, read_groups, num_cpus=cores):
        pad_batch([torch.from_numpy(wave_T) for wave_T in batch.signals])
        samples += sum(map(len, batch.signals))
    return samples / SAMPLE_RATE


def speeds(folder: Path, repeats: int, cores: int) -> dict[str, list[float]]:
    """Return audio seconds per second of every variant, one value per repeat."""
    results: dict[str, list[float]] = {}

    def add(name: str, audio: float, seconds: float) -> None:
        results.setdefault(name, []).append(audio / seconds)
        print(f"  {name:<44} {audio / seconds:7.0f}", file=sys.stderr, flush=True)

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        started = time.perf_counter()
        result = work()
        return time.perf_counter() - started, result

    for number in range(repeats):
        print(f"repeat {number + 1} of {repeats}", file=sys.stderr, flush=True)
        config = experiment(folder, f"repeat-{number}")
        seconds, _ = timed(lambda number=number: plain_prepare(folder, f"plain-{number}"))
        ray_seconds, _ = timed(lambda config=config: prepare.prepare_corpora(config))
        manifest = manifests.load_manifest(config)
        total = float(manifest.num_samples_N.sum()) / SAMPLE_RATE
        add("prepare, plain loop", total, seconds)
        add(f"prepare, Ray Data, {cores} cores", total, ray_seconds)
        add("stream, plain loop", total, timed(lambda manifest=manifest: plain_stream(manifest))[0])
        for workers in sorted({1, cores}):
            seconds, audio = timed(lambda m=manifest, w=workers: torch_loader(m, w))
            add(f"stream, torch DataLoader, {workers} workers", audio, seconds)
            for epochs in EPOCHS:
                seconds, audio = timed(lambda m=manifest, c=config, w=workers, e=epochs: ray_stream(m, c, w, e))
                add(f"stream, Ray Data, {workers} cores, {epochs} epochs", audio, seconds)
    return results


def padding(manifest: Manifest, config: Experiment) -> Iterator[str]:
    """Yield table rows with the share of padding in planned and in random batches of this corpus."""
    rows, random = np.arange(len(manifest.table)), np.random.default_rng(0)
    planned = list(plan_training_epoch(manifest, rows, config.batch, seed=0, epoch=0, world_size=1).batches(0))
    shuffled = random.permutation(rows)
    batches = [shuffled[start : start + 16] for start in range(0, len(rows), 16)]
    for name, selected in (("planned batches", planned), ("random batches of 16", batches)):
        padded, audio = padded_and_unpadded_seconds(manifest, selected)
        yield f"| {name} | {1 - audio / padded:.1%} |"


def main() -> None:
    """Measure all variants and print Markdown tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=1200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lakd-bench-") as scratch:
        folder = Path(scratch)
        make_corpus(folder, options.clips)
        with experiment_session(experiment(folder, "warm")):
            prepare.prepare_corpora(experiment(folder, "warm"))  # starts the workers and their imports
            results = speeds(folder, options.repeats, cores)
        config = experiment(folder, "warm")
        manifest = manifests.load_manifest(config)
        print(f"{options.clips} clips, {manifest.num_samples_N.sum() / SAMPLE_RATE:.0f} s of audio, {cores} cores\n")
        print("| | audio-s/s, median | range | of the plain loop, per core |\n|---|---|---|---|")
        for name, values in results.items():
            plain = median(results[f"{name.partition(',')[0]}, plain loop"])
            used = cores if f", {cores} " in name else 1
            share = median(values) / used / plain
            print(f"| {name} | {median(values):.0f} | {min(values):.0f} to {max(values):.0f} | {share:.2f} |")
        print("\n| | of the batch is padding |\n|---|---|")
        print("\n".join(padding(manifest, config)))


if __name__ == "__main__":
    main()
