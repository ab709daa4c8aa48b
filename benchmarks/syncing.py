"""Time to save the state of an epoch on a local disk, with and without the syncs that protect it from a power loss.

    python benchmarks/syncing.py FOLDER

FOLDER is on the disk to measure. An epoch of a small run saves a checkpoint (4 MB), the state of one rank (12 MB) and
the JSON files of its state. The output is the median and the range over epochs, alternately with and without syncs, and
the ratio of the medians. Training continues meanwhile: the time is that of a background thread, except at the end of a
run.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest import mock

from lakd_ray import storage
from lakd_ray.runs.state import ResumePoint, RunState

EPOCHS = 10
SIZES = {"best": {"model.safetensors": 4_000_000, "config.json": 2_000}, "resume": {"state.pt": 12_000_000}}


def save_epoch(run: Path, sources: dict[str, Path], epoch: int) -> float:
    """Publish what an epoch publishes, and return the seconds."""
    started = time.perf_counter()
    for kind, source in sources.items():
        storage.write_checksummed_folder(source, str(run / f"{kind}-{epoch:04d}"))
    RunState(ResumePoint(epoch, 0, f"resume-{epoch:04d}")).write(str(run))
    return time.perf_counter() - started


def main() -> None:
    """Measure epochs alternately with and without syncs and print the seconds."""
    seconds: dict[str, list[float]] = {"with syncs": [], "without": []}
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        sources = {kind: Path(folder, "sources", kind) for kind in SIZES}
        for kind, files in SIZES.items():
            sources[kind].mkdir(parents=True)
            for name, size in files.items():
                (sources[kind] / name).write_bytes(os.urandom(size))
        for epoch in range(EPOCHS):
            seconds["with syncs"].append(save_epoch(Path(folder, "with"), sources, epoch))
            with mock.patch("os.fsync"):
                seconds["without"].append(save_epoch(Path(folder, "without"), sources, epoch))
    for name, values in seconds.items():
        print(f"{name:<11} {median(values):6.3f} s per epoch ({min(values):.3f} to {max(values):.3f})")
    print(f"ratio       {median(seconds['with syncs']) / median(seconds['without']):6.2f}")


if __name__ == "__main__":
    main()
