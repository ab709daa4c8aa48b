"""The Optuna study that stores all trials, and from which an interrupted search resumes.

The study is the only store of objectives and of how trials ended, and it numbers the trials; Ray Tune only runs them.
A trial that was running when the driver was killed is run again and resumes from its own checkpoint.
"""

import itertools
import math
import sqlite3
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lakd_ray import storage
from lakd_ray.config import DistillLossConfig, Experiment, TuningConfig, to_dict, with_settings
from lakd_ray.errors import ConfigError, LeaseError, StageError
from lakd_ray.scratch import make_scratch_folder, scratch_folder
from lakd_ray.tune.database import explain_full_disk, sqlite_url, with_password

Settings = dict[str, Any]
"""Values by dotted key."""

STUDY_FILE = "study.db"
# The paper's loss, used by the first trial of a search.
PAPER_LOSS = DistillLossConfig(
    temperature=5.0, lam=0.25, weighting_temperature=0.25, weighting="similarity", reference_compat=True
)
_PAPER_KD_LOSS = DistillLossConfig(temperature=5.0, lam=0.75, reference_compat=True)
_FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Trial:
    """A trial of the search and its results."""

    number: int
    settings: Settings
    state: str
    """`complete`, `stopped` early, `failed` or `running`."""
    objective: float | None
    """The highest objective of its epochs."""
    cost: float | None
    """The second objective, if there is one."""
    epochs: int
    curve: tuple[float, ...]
    """The highest objective so far, after each epoch."""
    audio_seconds: float
    """Audio that it was trained on in all epochs."""
    cause: str | None = None
    """The cause of its failure."""


class Study:
    """The Optuna study of a search and its file.

    Args:
        config: the experiment.
        folder: the stage's folder. If it is in a bucket, the study is a local copy that is uploaded whenever a trial
            starts or ends.

    Raises:
        StageError: the study belongs to a different search.
        DiskFullError: the disk of the study is full; all methods raise it.
    """

    def __init__(self, config: Experiment, folder: str) -> None:
        self._config, self._tune = config, config.tune
        self._max_epochs = config.tune.epochs or config.student.optim.epochs
        self._folder = folder
        self._lease: storage.Lease | None = None
        self.location = storage.join(folder, STUDY_FILE)
        self._running: dict[int, optuna.Trial] = {}
        self._open()

    @explain_full_disk
    def _open(self) -> None:
        """Open the study, or a copy of the one in the bucket."""
        config = self._config
        self._local_copy: Path | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                storage=self._storage_url(),
                study_name=config.name,
                sampler=_build_sampler(config),
                pruner=_build_pruner(self._tune),
                directions=["maximize", "minimize"] if self._tune.second_objective else ["maximize"],
                load_if_exists=True,
            )
        self._check_same_search()
        self._interrupted = [trial for trial in self._study.trials if trial.state == TrialState.RUNNING]

    def _check_lease(self) -> None:
        """Check that this driver may still write to the study, which Optuna writes without `lakd_ray.storage`.

        Raises:
            LeaseError: a different driver has taken the search over.
        """
        if self._lease is not None:
            self._lease.fence.check()
        storage.check_fences(self.location)

    def _take_lease(self) -> None:
        """Become the only driver of the search, and read it again: a driver that has ended may have changed it.

        Raises:
            LeaseError: a different driver runs this search.
        """
        self._lease = storage.Lease.acquire(self._folder)
        self._open()
        former = self._study.user_attrs.get("folder", self._folder)  # a shared `tune.study_storage` may serve both
        if former != self._folder and (holder := storage.find_holder(former)):
            raise LeaseError(f"the study {self._config.name} is in use by {holder.describe()}, for {former}")
        self._study.set_user_attr("folder", self._folder)
        if not self._study.trials:
            for settings in _initial_trials(self._config):
                self._study.enqueue_trial(settings)

    def _storage_url(self) -> str:
        if self._tune.study_storage:
            return with_password(self._tune.study_storage)
        if not storage.is_remote(self.location):
            path = Path(storage.resolve_filesystem(self.location)[1])
            storage.make_folder(path.parent)
            return sqlite_url(path)
        self._local_copy = make_scratch_folder() / STUDY_FILE
        if storage.exists(self.location):
            self._local_copy.write_bytes(storage.read_bytes(self.location))
        return sqlite_url(self._local_copy)

    def _check_same_search(self) -> None:
        """Raise an error if the search has changed, because old and new trials would not be comparable."""
        searched = to_dict(self._tune)
        settings = {key: searched[key] for key in ("space", "paradigm", "epochs", "objective", "second_objective")}
        stored = self._study.user_attrs.get("search")
        if stored is None:
            self._study.set_user_attr("search", settings)
        elif stored != settings:
            changed = ", ".join(f"tune.{key}" for key in settings if stored.get(key) != settings[key])
            raise StageError(
                f"the study in {self.location} belongs to a different search: {changed} changed. Choose a different "
                "`name`, undo the change, or delete that folder to search from scratch."
            )

    @property
    def remaining(self) -> int:
        """Number of trials to run: interrupted and new ones. A failed trial is not replaced."""
        ended = [trial for trial in self._study.trials if trial.state.is_finished()]
        total = self._tune.trials
        if self._tune.sampler == "grid":
            total = min(total, math.prod(len(dimension.choices) for dimension in self._tune.space.values()))
        return max(len(self._interrupted), total - len(ended))

    @explain_full_disk
    def next_trial(self) -> tuple[int, Settings]:
        """Return number and settings of the next trial; interrupted trials come first.

        The first call takes the lease of the search, so that no trial is handed out twice.

        Raises:
            LeaseError: a different driver runs this search.
        """
        if self._lease is None:
            self._take_lease()
        self._check_lease()
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            trial = optuna.Trial(self._study, frozen._trial_id)
        else:
            trial = self._study.ask()
        self._running[trial.number] = trial
        settings = suggest_settings(trial, self._tune)
        self._upload_copy()
        return trial.number, settings

    @explain_full_disk
    def report_epoch(self, number: int, epoch: int, objective: float, audio_seconds: float) -> bool:
        """Record the highest objective so far after an epoch; return whether the trial should stop."""
        self._check_lease()
        trial = self._running[number]
        attributes = self._frozen_trial(number).user_attrs
        curve = attributes.get("curve", {})
        if str(epoch) not in curve:  # a resumed trial may report an epoch again
            trial.set_user_attr("curve", curve | {str(epoch): objective})
            trial.set_user_attr("audio_seconds", attributes.get("audio_seconds", 0.0) + audio_seconds)
        if self._tune.second_objective:
            return False
        if epoch not in self._frozen_trial(number).intermediate_values:
            trial.report(objective, epoch)
        return epoch < self._max_epochs and trial.should_prune()  # after its last epoch it is complete

    @explain_full_disk
    def finish_trial(self, number: int, cost: float | None, *, stopped: bool) -> None:
        """Record that a trial has ended, after its last epoch or because it was stopped."""
        self._check_lease()
        trial = self._running.pop(number)
        curve = self._frozen_trial(number).user_attrs.get("curve", {})
        if stopped:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif not curve:
            self.fail_trial(number, "it ended before its first epoch", trial)
            return
        else:
            best = max(curve.values())
            self._study.tell(trial, [best, cost or 0.0] if self._tune.second_objective else best)
        self._upload_copy()

    @explain_full_disk
    def fail_trial(self, number: int, cause: str, trial: optuna.Trial | None = None) -> None:
        """Record that a trial has failed permanently, with the cause."""
        self._check_lease()
        trial = trial or self._running.pop(number)
        trial.set_user_attr("cause", cause)
        self._study.tell(trial, state=TrialState.FAIL)
        self._upload_copy()

    @explain_full_disk
    def get_trials(self) -> list[Trial]:
        """Return all trials, ordered by number."""
        return [_to_trial(frozen, self._tune) for frozen in self._study.trials if frozen.state != TrialState.WAITING]

    def get_param_importances(self) -> dict[str, float]:
        """Return the importance of each setting (PED-ANOVA, Watanabe et al., IJCAI 2023); empty if few trials ended."""
        ended = [trial for trial in self._study.trials if trial.state in _FINISHED_STATES]
        if len(ended) < 4 or self._tune.second_objective:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(evaluate_on_local=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return dict(optuna.importance.get_param_importances(self._study, evaluator=evaluator))
            except (RuntimeError, ValueError):  # no setting that all trials have, or no variance
                return {}

    @explain_full_disk
    def close(self) -> None:
        """End the lease of the search, after an upload of the study if it is in a bucket."""
        if self._lease is None:
            return
        try:
            self._upload_copy()
        finally:
            self._lease.release()
            self._lease = None

    def _frozen_trial(self, number: int) -> FrozenTrial:
        return self._study.trials[number]

    def _upload_copy(self) -> None:
        if self._local_copy is None:
            return
        with scratch_folder() as folder:
            copy = Path(folder, STUDY_FILE)
            with sqlite3.connect(self._local_copy) as source, sqlite3.connect(copy) as target:
                source.backup(target)
            target.close()
            source.close()
            storage.write_bytes(self.location, copy.read_bytes())


def suggest_settings(trial: optuna.Trial, tune: TuningConfig) -> Settings:
    """Let the trial suggest a value for every setting whose conditions hold."""
    settings: Settings = {}
    for key, dimension in tune.space.items():
        if any(settings.get(other) not in values for other, values in dimension.conditions.items()):
            continue
        if dimension.choices:
            settings[key] = trial.suggest_categorical(key, list(dimension.choices))
        elif dimension.integer:
            settings[key] = trial.suggest_int(key, int(dimension.low or 0), int(dimension.high or 0), log=dimension.log)
        else:
            settings[key] = trial.suggest_float(
                key, float(dimension.low or 0), float(dimension.high or 0), log=dimension.log
            )
    return settings


def paper_settings(config: Experiment) -> Settings:
    """Return the paper's values of the searched settings, or the experiment's own where the paper has none.

    The result is empty if one of the values is outside the search space.
    """
    own, settings = to_dict(config), Settings()
    for key, dimension in config.tune.space.items():
        section, _, name = key.rpartition(".")
        loss = {"distill.mtkd": PAPER_LOSS, "distill.kd": _PAPER_KD_LOSS}.get(section)
        value = getattr(loss, name) if loss else _get_nested(own, key)
        if any(settings.get(other) not in values for other, values in dimension.conditions.items()):
            continue
        in_space = (
            value in dimension.choices
            if dimension.choices
            else (dimension.low or 0) <= (value or 0) <= (dimension.high or 0)
        )
        if not in_space:
            return {}
        settings[key] = value
    return settings


def build_trial_config(config: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a trial; with the paper's settings, its loss is exactly the paper's.

    Raises:
        ConfigError: the settings are incompatible.
    """
    changed = with_settings(config, dict(settings), "tune.space")
    if settings == paper_settings(config):
        paper_losses = {"mtkd": PAPER_LOSS, "kd": _PAPER_KD_LOSS}
        losses = {
            name: loss
            for name, loss in paper_losses.items()
            if any(key.startswith(f"distill.{name}.") for key in config.tune.space)
        }
        changed = changed.model_copy(update={"distill": changed.distill.model_copy(update=losses)})
    return changed


def _initial_trials(config: Experiment) -> list[Settings]:
    """Return the trials that the sampler does not choose: the paper's settings, and all of a grid."""
    paper, space = paper_settings(config), config.tune.space
    first = [paper] if paper else []
    if config.tune.sampler != "grid":
        return first
    values = itertools.product(*(dimension.choices for dimension in space.values()))
    grid = [dict(zip(space, choice, strict=True)) for choice in values]
    return first + [settings for settings in grid if settings != paper]


def _get_nested(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _build_sampler(config: Experiment) -> optuna.samplers.BaseSampler:
    tune = config.tune
    if tune.sampler != "tpe":
        return optuna.samplers.RandomSampler(config.seed)
    return optuna.samplers.TPESampler(seed=config.seed, multivariate=True, group=True, constant_liar=True)


def _build_pruner(tune: TuningConfig) -> optuna.pruners.BasePruner:
    if tune.second_objective or tune.scheduler == "none":
        return optuna.pruners.NopPruner()
    if tune.scheduler == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=tune.grace_epochs)
    # ASHA: Li et al. 2018, arXiv 1810.05934
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=tune.grace_epochs, reduction_factor=tune.reduction_factor
    )


def _to_trial(frozen: FrozenTrial, tune: TuningConfig) -> Trial:
    curve = {int(step): value for step, value in frozen.user_attrs.get("curve", {}).items()}
    states = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "stopped",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "running",
    }
    complete = frozen.state == TrialState.COMPLETE and tune.second_objective
    return Trial(
        number=frozen.number,
        settings={key: frozen.params[key] for key in tune.space if key in frozen.params},
        state=states[frozen.state],
        objective=max(curve.values(), default=None),
        cost=frozen.values[1] if complete and frozen.values else None,
        epochs=max(curve, default=0),
        curve=tuple(curve[step] for step in sorted(curve)),
        audio_seconds=float(frozen.user_attrs.get("audio_seconds", 0.0)),
        cause=frozen.user_attrs.get("cause"),
    )


def validate_search_space(config: Experiment) -> None:
    """Check each choice with the experiment's own values of the other settings, before any trial starts.

    Raises:
        ConfigError: a choice is invalid, or trials would be reevaluated with the seed that selected them.
    """
    if config.tune.reevaluate and config.seed in config.tune.reevaluate.seeds:
        raise ConfigError(
            f"tune.reevaluate.seeds includes {config.seed}, the seed of the search: the best trials are selected with "
            "it, so their scores with it are biased upwards. Choose different seeds."
        )
    for key, dimension in config.tune.space.items():
        for value in dimension.choices:
            context = {other: values[0] for other, values in dimension.conditions.items()}
            try:
                with_settings(config, {**context, key: value}, f"tune.space.{key}")
            except ConfigError as error:
                raise ConfigError(f"{error} (a choice of tune.space, with the experiment's other settings)") from None
