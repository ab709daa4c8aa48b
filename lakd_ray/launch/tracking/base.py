"""What a tracker is, and what all of them send: numbers of an epoch, settings of a run. Never audio, never speakers."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from lakd_ray import storage
from lakd_ray.config import Experiment, to_dict
from lakd_ray.runs.graph import Run
from lakd_ray.train.step import LOSS_NAMES

EpochMetrics = Mapping[str, Any]
"""An epoch's entry in a run's metrics file."""
RunStatus = Literal["finished", "failed", "interrupted"]
Scalar = str | int | float | bool

_METRIC_TAGS = {
    **{part: f"loss/{part}" for part in LOSS_NAMES},
    "loss": "loss/total",
    "dev_UR": "dev/UR",
    "dev_recall": "dev/UR",  # of each language
    "dev_WR": "dev/WR",
    "dev_ce": "dev/ce",
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "steps": "optim/steps",
    "audio_seconds_per_second": "speed/audio_seconds_per_second",
    "memory_mb": "speed/memory_mb",
    "tflops": "speed/tflops",
    "mfu": "speed/mfu",
    "audio_seconds": "data/audio_seconds",
    "padding": "data/padding",
    "seconds": "time/train",
    "dev_seconds": "time/dev",
    "seconds_left": "time/left",
}
_EXCLUDED_SECTIONS = ("storage", "stages", "grid", "tune", "serve", "tracking", "cluster")
_PRIVATE_CORPUS_KEYS = ("root", "options")  # of a corpus: they can name people, and folders of machines


class Tracker(Protocol):
    """Somebody who is told of runs. Any error means that it is told no more; each is called by one thread only."""

    name: str

    def start_run(self, config: Experiment, run: Run) -> int:
        """Take a run up, perhaps one that goes on; returns the last epoch that is known of it already, 0 for none."""
        ...

    def log_epoch(self, run: str, epoch_metrics: EpochMetrics) -> None:
        """An epoch of a run that is open; each is told once, in order."""
        ...

    def end_run(self, run: str, status: RunStatus) -> None:
        """The end of a run that is open, for now at least."""
        ...


def flatten_metrics(epoch_metrics: EpochMetrics) -> dict[str, float]:
    """All numbers of a line, grouped: `dev/UR/fi`. What is not known here goes to `other/`."""
    found: dict[str, float] = {}
    for key, value in epoch_metrics.items():
        if key in ("epoch", "epochs"):
            continue
        tag = _metric_tag(key)
        numbers = (
            {f"{tag}/{name}": part for name, part in value.items()} if isinstance(value, Mapping) else {tag: value}
        )
        found |= {name: float(number) for name, number in numbers.items() if _is_number(number)}
    return found


def hyperparameters(config: Experiment, run: Run) -> dict[str, Scalar]:
    """What shapes a run, by dotted keys; without the names of speakers and the places of audio."""
    tree = {key: value for key, value in to_dict(config).items() if key not in _EXCLUDED_SECTIONS}
    for corpus in tree["corpora"]:
        corpus["split"]["groups"] = len(corpus["split"]["groups"])
        corpus["emotion_map"] = json.dumps(
            corpus["emotion_map"]
        )  # keys as a corpus has them, which not everybody takes
    tree["corpora"] = {
        corpus["name"]: {key: value for key, value in corpus.items() if key not in _PRIVATE_CORPUS_KEYS}
        for corpus in tree["corpora"]
    }
    for teacher in tree["distill"]["external_teachers"]:
        del teacher["trained_on"]
    return _flatten(tree | {"fold": run.fold, "seed": run.seed})


def run_tags(config: Experiment, run: Run) -> dict[str, str]:
    """What runs are grouped and sorted by."""
    return {
        "experiment": config.name,
        "fold": str(run.fold),
        "seed": str(run.seed),
        "paradigm": run.paradigm,
        "setup": run.setup,
        "variant": run.variant or "none",
        "stage": run.stage,
    }


def _metric_tag(key: str) -> str:
    timed = f"time/{key.removeprefix('seconds_')}" if key.startswith("seconds_") else f"other/{key}"
    return _METRIC_TAGS.get(key, timed)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flatten(value: Any, key: str = "") -> dict[str, Scalar]:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, dict):
        below = [_flatten(item, f"{key}.{name}" if key else name) for name, item in value.items()]
        return {name: item for part in below for name, item in part.items()}
    if isinstance(value, list):
        return {key: ", ".join(map(str, value))}
    return {key: "null" if value is None else value}


class StagingDir:
    """A folder on this machine's disk, emptied first, whose files end up at a location: there at once, or copied."""

    def __init__(self, location: str) -> None:
        storage.delete(location)
        self._location = location
        self._temporary = tempfile.TemporaryDirectory(prefix="lakd-") if storage.is_remote(location) else None
        self.path = Path(self._temporary.name if self._temporary else storage.resolve_filesystem(location)[1])
        self.path.mkdir(parents=True, exist_ok=True)

    def upload(self) -> None:
        """Copy what is there by now to a bucket. The files are small: nothing is gained by sending parts."""
        if self._temporary is not None:
            storage.upload_folder(self.path, self._location)

    def close(self) -> None:
        """Push for the last time."""
        try:
            self.upload()
        finally:
            if self._temporary is not None:
                self._temporary.cleanup()
