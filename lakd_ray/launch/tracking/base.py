"""The tracker interface, and the content that trackers send: metrics and hyperparameters, never audio or speakers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from lakd_ray import storage
from lakd_ray.config import Experiment, to_dict
from lakd_ray.runs.graph import Run
from lakd_ray.scratch import make_scratch_folder, remove_scratch_folder
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
_PRIVATE_CORPUS_KEYS = ("root", "options")  # of a corpus: they may contain names of persons and folders


class Tracker(Protocol):
    """Receives the epochs of runs. It is called by one thread only; after any error it is not called again."""

    name: str

    def start_run(self, config: Experiment, run: Run) -> int:
        """Start or resume a run; return the last epoch that the tracker already has, 0 if it has none."""
        ...

    def log_epoch(self, run: str, epoch_metrics: EpochMetrics) -> None:
        """Log the metrics of an epoch of a started run; called once per epoch, in order."""
        ...

    def end_run(self, run: str, status: RunStatus) -> None:
        """End a started run; it may be started again later."""
        ...


def flatten_metrics(epoch_metrics: EpochMetrics) -> dict[str, float]:
    """Return all numbers of an epoch by grouped names such as `dev/UR/fi`; unknown names get the prefix `other/`."""
    metrics: dict[str, float] = {}
    for key, value in epoch_metrics.items():
        if key in ("epoch", "epochs"):
            continue
        tag = _metric_tag(key)
        numbers = (
            {f"{tag}/{name}": part for name, part in value.items()} if isinstance(value, Mapping) else {tag: value}
        )
        metrics |= {name: float(number) for name, number in numbers.items() if _is_number(number)}
    return metrics


def hyperparameters(config: Experiment, run: Run) -> dict[str, Scalar]:
    """Return the settings of a run by dotted keys, without names of speakers and locations of audio."""
    tree = {key: value for key, value in to_dict(config).items() if key not in _EXCLUDED_SECTIONS}
    for corpus in tree["corpora"]:
        corpus["split"]["groups"] = len(corpus["split"]["groups"])
        # as one string: its keys are a corpus's own labels, with characters that some trackers reject
        corpus["emotion_map"] = json.dumps(corpus["emotion_map"])
    tree["corpora"] = {
        corpus["name"]: {key: value for key, value in corpus.items() if key not in _PRIVATE_CORPUS_KEYS}
        for corpus in tree["corpora"]
    }
    for teacher in tree["distill"]["external_teachers"]:
        del teacher["trained_on"]
    return _flatten(tree | {"fold": run.fold, "seed": run.seed})


def run_tags(config: Experiment, run: Run) -> dict[str, str]:
    """Return the tags by which runs can be grouped and sorted."""
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
    """A local folder, initially empty, whose files are stored at a location: the folder itself, or one in a bucket."""

    def __init__(self, location: str) -> None:
        storage.delete(location)
        self._location = location
        self._temporary = make_scratch_folder() if storage.is_remote(location) else None
        self.path = self._temporary or Path(storage.resolve_filesystem(location)[1])
        self.path.mkdir(parents=True, exist_ok=True)

    def upload(self) -> None:
        """Copy all files to the bucket, if the location is in one. The files are small enough to copy all each time."""
        if self._temporary is not None:
            storage.upload_folder(self.path, self._location)

    def close(self) -> None:
        """Upload the files for the last time and delete the temporary folder."""
        try:
            self.upload()
        finally:
            if self._temporary is not None:
                remove_scratch_folder(self._temporary)
