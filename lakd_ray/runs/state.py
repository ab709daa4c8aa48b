"""The state of a training run in its folder, from which an interrupted run resumes.

    <run folder>/
      record.json         settings and inputs of the run; written at the start, rewritten when the run finishes
      metrics.jsonl       one line per epoch
      state.json          names the newest complete resume folder and the best checkpoint; replaced atomically
      resume-0007/        engine state after epoch 7, and the random state of every rank
      resume-0007-00120/  the same after 120 more batches of the next epoch
      best-0005/          checkpoint of one of the best epochs so far (transformers format)

`state.json` is written after the checksums of the folders that it names, so a crash at any moment leaves the previous
state. The newest `train.keep_resume_states` states are stored: if one is corrupted, the one before it is used.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment, to_dict
from lakd_ray.errors import CheckpointError, StageError
from lakd_ray.runs import record as records
from lakd_ray.runs.graph import Run, RunGraph
from lakd_ray.runs.layout import METRICS_FILE, STATE_FILE, checkpoint_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """A state from which training can resume: its position in the data is (seed, epochs_done, batches_done)."""

    epochs_done: int = 0
    """Finished epochs."""
    batches_done: int = 0
    """Batches of the next epoch that each rank has finished."""
    resume_folder: str | None = None
    """Folder with the engine's state; None at the start, and once the run is finished."""
    world_size: int = 1
    """Number of ranks that wrote it."""


@dataclass(frozen=True)
class RunState:
    """The progress of a run: resume points and metrics."""

    latest: ResumePoint = ResumePoint()
    """The newest resume point."""
    previous: tuple[ResumePoint, ...] = ()
    """Stored resume points before it, newest first."""
    metrics: tuple[dict[str, Any], ...] = ()
    """One entry per finished epoch."""

    @property
    def best_checkpoint_name(self) -> str | None:
        """Name of the best epoch's checkpoint folder; None before the first epoch."""
        return next(iter(self.best_checkpoint_names(1)), None)

    @property
    def best_dev_score(self) -> tuple[float, float]:
        """(dev UR, negated dev cross-entropy) of the best epoch; the loss breaks ties."""
        return max(map(_dev_score, self.metrics), default=(-1.0, 0.0))

    @property
    def epochs_since_best(self) -> int:
        """Number of epochs since the best one."""
        return len(self.metrics) - _rank_epochs(self.metrics)[0] - 1 if self.metrics else 0

    def best_checkpoint_names(self, count: int, epochs: int | None = None) -> list[str]:
        """Return the names of the best checkpoint folders, the best first.

        Args:
            count: number of checkpoints.
            epochs: if given, only the first `epochs` epochs count.
        """
        return [checkpoint_name(index + 1) for index in _rank_epochs(self.metrics[:epochs])[:count]]

    def advance(
        self, resume_point: ResumePoint, epoch_metrics: dict[str, Any] | None, *, keep_resume_states: int
    ) -> "RunState":
        """Return the state at a new resume point.

        Args:
            resume_point: the new resume point.
            epoch_metrics: the entry of the epoch that ends there; None within an epoch.
            keep_resume_states: resume points to store, including the new one. The newest end-of-epoch point is always
                stored, because a different number of workers can resume only from the end of an epoch.
        """
        older = [self.latest, *self.previous] if self.latest.resume_folder else []
        retained = older[: keep_resume_states - 1]
        if resume_point.batches_done and all(point.batches_done for point in retained):
            retained += [point for point in older[keep_resume_states - 1 :] if not point.batches_done][:1]
        metrics = self.metrics if epoch_metrics is None else (*self.metrics, epoch_metrics)
        return RunState(resume_point, tuple(retained), metrics)

    def rollback(self) -> "RunState":
        """Return the state at the previous resume point, or an empty state if none is stored."""
        if not self.previous:
            return RunState()
        latest, *older = self.previous
        return RunState(latest, tuple(older), self.metrics[: latest.epochs_done])

    def referenced_folders(self, keep_checkpoints: int) -> set[str]:
        """Return the names of the folders that this state or one of its previous resume points needs."""
        points = [self.latest, *self.previous]
        best = {name for point in points for name in self.best_checkpoint_names(keep_checkpoints, point.epochs_done)}
        return best | {point.resume_folder for point in points if point.resume_folder}

    def write(self, folder: str, keep_checkpoints: int = 1) -> None:
        """Write this state to the run's folder."""
        lines = "".join(json.dumps(epoch) + "\n" for epoch in self.metrics)
        summary = {"best": self.best_checkpoint_name, "folders": sorted(self.referenced_folders(keep_checkpoints))}
        storage.write_json(storage.join(folder, STATE_FILE), summary | asdict(self))
        storage.write_bytes(storage.join(folder, METRICS_FILE), lines.encode())

    @classmethod
    def read(cls, folder: str) -> "RunState":
        """Read the state from a run's folder; return an empty state if none is saved."""
        if not storage.exists(storage.join(folder, STATE_FILE)):
            return cls()
        content = storage.read_json(storage.join(folder, STATE_FILE))
        latest, *older = (ResumePoint(**fields) for fields in [content["latest"], *content["previous"]])
        for point in (latest, *older):
            if point.resume_folder is not None:
                storage.confine(folder, point.resume_folder, allow_links=True)
        return cls(latest, tuple(older), tuple(content["metrics"]))


def _dev_score(epoch_metrics: dict[str, Any]) -> tuple[float, float]:
    return epoch_metrics["dev_UR"], -epoch_metrics["dev_ce"]


def _rank_epochs(metrics: Sequence[dict[str, Any]]) -> list[int]:
    """Return the indices of the epochs by their dev score, the best first; ties are in epoch order."""
    return sorted(range(len(metrics)), key=lambda index: _dev_score(metrics[index]), reverse=True)


def fingerprint_inputs(run: Run, config: Experiment, inputs: dict[str, str]) -> dict[str, Any]:
    """Return everything on which a run's weights depend, as plain JSON types.

    Args:
        run: the run.
        config: the experiment.
        inputs: digests of the data and of the teachers' checkpoints.
    """
    train = to_dict(config.train)
    # The number and the device of the workers are not included: a run may resume with different ones.
    relevant = (
        "engine",
        "zero_stage",
        "precision",
        "gradient_accumulation_steps",
        "cpus_per_worker",
        "cache_features",
    )
    return {
        "run": {key: value for key, value in to_dict(run).items() if key not in ("id", "stage", "variant")},
        "batch": to_dict(config.batch),
        "train": {key: train[key] for key in relevant} | ({"compile": True} if train["compile"] else {}),
        "splits": {corpus.name: to_dict(corpus.split) for corpus in config.corpora},
        "inputs": inputs,
        **({"languages": list(config.languages)} if _numbers_languages(run, config) else {}),
    }


def _numbers_languages(run: Run, config: Experiment) -> bool:
    """Return whether the weights depend on the order of languages that are not all in the run's own settings."""
    return run.recipe.model.language_aware is not None and run.languages != config.languages


def select_served_student(graph: RunGraph) -> Run:
    """Return the student that the endpoint serves: the best on dev of those that cover all languages of the experiment.

    UR on dev is the mean over a student's languages, so it is comparable only between students of the same languages.
    If no student covers all, the paradigm whose students have the highest mean over the languages is selected, and of
    these the student of the experiment's first language.
    """
    languages = set(graph.config.languages)
    candidates = [[run] for run in graph.students if languages <= set(run.languages)] or [
        [run for run in graph.students if run.paradigm == paradigm] for paradigm in graph.config.distill.paradigms
    ]
    return max(candidates, key=lambda runs: _mean_dev_score(runs, graph.config))[0]


def _mean_dev_score(runs: Sequence[Run], config: Experiment) -> tuple[float, float]:
    """Return the means of the best dev scores, or the score of an untrained run if there is one."""
    scores = [RunState.read(run.folder(config)).best_dev_score for run in runs]
    if RunState().best_dev_score in scores:
        return RunState().best_dev_score
    UR, negated_ce = (mean(column) for column in zip(*scores, strict=True))
    return UR, negated_ce


def find_best_checkpoint(run: Run, config: Experiment) -> str:
    """Return the location of a finished run's best checkpoint.

    Raises:
        StageError: the run is not finished.
        CheckpointError: the run is recorded as finished but has no best checkpoint.
    """
    folder = run.folder(config)
    record = records.read_record(folder)
    if record is None or record["finished"] is None:
        raise StageError(
            f"{run.id} is not trained: {folder} contains no finished run. Run the stage `{run.stage}` first."
        )
    best = RunState.read(folder).best_checkpoint_name
    if best is None:
        raise CheckpointError(
            f"{folder} is recorded as finished but names no best checkpoint: delete it and train again"
        )
    return storage.join(folder, best)


def find_best_student_checkpoint(graph: RunGraph) -> str:
    """Return the location of the checkpoint of the student that the endpoint serves, see `select_served_student`.

    Raises:
        StageError: that student is not trained.
    """
    run = select_served_student(graph)
    if missing := [code for code in graph.config.languages if code not in run.languages]:
        logger.warning(
            f"no student covers all languages of the experiment: {run.id} is trained on {', '.join(run.languages)}, "
            f"not on {', '.join(missing)}. To have a student of all languages, train the set-up `multilingual`."
        )
    return find_best_checkpoint(run, graph.config)
