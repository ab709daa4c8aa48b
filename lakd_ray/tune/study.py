"""The search's memory: an Optuna study, from which an interrupted search goes on.

Trials are numbered as in the study. What a trial has reported after each epoch, whether it was stopped or failed and
why, stands there alone: Ray Tune only runs trials. A trial that was running when the driver was killed is handed out
again, and goes on from its own checkpoint.
"""

import itertools
import math
import sqlite3
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lakd_ray import storage
from lakd_ray.config import DistillLossConfig, Experiment, TuningConfig, to_dict, with_settings
from lakd_ray.errors import ConfigError, StageError

Settings = dict[str, Any]  # dotted key -> value

STUDY_FILE = "study.db"
# The paper's loss. The search's first trial.
PAPER_LOSS = DistillLossConfig(
    temperature=5.0, lam=0.25, weighting_temperature=0.25, weighting="similarity", reference_compat=True
)
_PAPER_KD_LOSS = DistillLossConfig(temperature=5.0, lam=0.75, reference_compat=True)
_FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Trial:
    """A trial as people want to see it."""

    number: int
    settings: Settings
    state: str
    """`complete`, `stopped` early, `failed` or `running`."""
    objective: float | None
    """The highest of its epochs."""
    cost: float | None
    """The second objective, if there is one."""
    epochs: int
    curve: tuple[float, ...]
    """The objective after each epoch, the highest so far."""
    audio_seconds: float
    """Audio it was trained on, all epochs."""
    cause: str | None = None
    """Why it failed."""


class Study:
    """An Optuna study, and the file it lies in.

    Args:
        folder: the stage's folder, here or in a bucket; a bucket's study is worked on in a copy that is put back
            whenever a trial ends.

    Raises:
        StageError: the study there is one of another search.
        ConfigError: no grid can be made.
    """

    def __init__(self, config: Experiment, folder: str) -> None:
        self._config, self._tune = config, config.tune
        self._max_epochs = config.tune.epochs or config.student.optim.epochs
        self._location = storage.join(folder, STUDY_FILE)
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
        self._running: dict[int, optuna.Trial] = {}
        if not self._study.trials:
            for settings in _initial_trials(config):
                self._study.enqueue_trial(settings)
        self._interrupted = [trial for trial in self._study.trials if trial.state == TrialState.RUNNING]

    def _storage_url(self) -> str:
        if self._tune.study_storage:
            return self._tune.study_storage
        if not storage.is_remote(self._location):
            path = Path(storage.resolve_filesystem(self._location)[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            return f"sqlite:///{path}"
        self._local_copy = Path(tempfile.mkdtemp(prefix="lakd-"), STUDY_FILE)
        if storage.exists(self._location):
            self._local_copy.write_bytes(storage.read_bytes(self._location))
        return f"sqlite:///{self._local_copy}"

    def _check_same_search(self) -> None:
        """What would make old trials incomparable with new ones."""
        searched = to_dict(self._tune)
        kept = {key: searched[key] for key in ("space", "paradigm", "epochs", "objective", "second_objective")}
        found = self._study.user_attrs.get("search")
        if found is None:
            self._study.set_user_attr("search", kept)
        elif found != kept:
            changed = ", ".join(f"tune.{key}" for key in kept if found.get(key) != kept[key])
            raise StageError(
                f"the study in {self._location} is of another search: {changed} changed. Choose another `name`, undo the "
                "change, or delete that folder to search anew."
            )

    @property
    def remaining(self) -> int:
        """Trials that are to be run: those that were interrupted, and new ones. A failed one is not made good."""
        ended = [trial for trial in self._study.trials if trial.state.is_finished()]
        wanted = self._tune.trials
        if self._tune.sampler == "grid":
            wanted = min(wanted, math.prod(len(each.choices) for each in self._tune.space.values()))
        return max(len(self._interrupted), wanted - len(ended))

    def next_trial(self) -> tuple[int, Settings]:
        """Number and settings of a trial to run: an interrupted one first."""
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            trial = optuna.Trial(self._study, frozen._trial_id)
        else:
            trial = self._study.ask()
        self._running[trial.number] = trial
        settings = suggest_settings(trial, self._tune)
        self._upload_copy()
        return trial.number, settings

    def report_epoch(self, number: int, epoch: int, objective: float, audio_seconds: float) -> bool:
        """Note an epoch's best objective so far; whether the trial should stop now."""
        trial = self._running[number]
        known = {int(step) for step in self._frozen_trial(number).user_attrs.get("curve", {})}
        if epoch not in known:  # a trial that went on may report an epoch again
            curve = self._frozen_trial(number).user_attrs.get("curve", {}) | {str(epoch): objective}
            heard = self._frozen_trial(number).user_attrs.get("audio_seconds", 0.0) + audio_seconds
            trial.set_user_attr("curve", curve)
            trial.set_user_attr("audio_seconds", heard)
        if self._tune.second_objective:
            return False
        if epoch not in self._frozen_trial(number).intermediate_values:
            trial.report(objective, epoch)
        return epoch < self._max_epochs and trial.should_prune()  # after its last epoch it is complete

    def finish_trial(self, number: int, cost: float | None, *, stopped: bool) -> None:
        """A trial has ended: by itself, or because it should."""
        trial = self._running.pop(number)
        curve = self._frozen_trial(number).user_attrs.get("curve", {})
        if stopped:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif not curve:
            self.fail_trial(number, "it ended without an epoch", trial)
            return
        else:
            best = max(curve.values())
            self._study.tell(trial, [best, cost or 0.0] if self._tune.second_objective else best)
        self._upload_copy()

    def fail_trial(self, number: int, cause: str, trial: optuna.Trial | None = None) -> None:
        """A trial has failed for good."""
        trial = trial or self._running.pop(number)
        trial.set_user_attr("cause", cause)
        self._study.tell(trial, state=TrialState.FAIL)
        self._upload_copy()

    def get_trials(self) -> list[Trial]:
        """All of them, by number."""
        return [_to_trial(frozen, self._tune) for frozen in self._study.trials if frozen.state != TrialState.WAITING]

    def get_param_importances(self) -> dict[str, float]:
        """How much each setting moves the objective (PED-ANOVA, Watanabe et al., IJCAI 2023); empty if few ended."""
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

    def close(self) -> None:
        """Put a bucket's study back."""
        self._upload_copy()

    def _frozen_trial(self, number: int) -> FrozenTrial:
        return self._study.trials[number]

    def _upload_copy(self) -> None:
        if self._local_copy is None:
            return
        with tempfile.TemporaryDirectory(prefix="lakd-") as folder:
            whole = Path(folder, STUDY_FILE)
            with sqlite3.connect(self._local_copy) as source, sqlite3.connect(whole) as target:
                source.backup(target)
            target.close()
            source.close()
            storage.write_bytes(self._location, whole.read_bytes())


def suggest_settings(trial: optuna.Trial, tune: TuningConfig) -> Settings:
    """What the study suggests for every setting that applies."""
    settings: Settings = {}
    for key, each in tune.space.items():
        if any(settings.get(other) not in values for other, values in each.conditions.items()):
            continue
        if each.choices:
            settings[key] = trial.suggest_categorical(key, list(each.choices))
        elif each.integer:
            settings[key] = trial.suggest_int(key, int(each.low or 0), int(each.high or 0), log=each.log)
        else:
            settings[key] = trial.suggest_float(key, float(each.low or 0), float(each.high or 0), log=each.log)
    return settings


def paper_settings(config: Experiment) -> Settings:
    """The paper's values of what is searched, the experiment's own where it has none; empty if one is excluded."""
    own, found = to_dict(config), Settings()
    for key, each in config.tune.space.items():
        section, _, name = key.rpartition(".")
        loss = {"distill.mtkd": PAPER_LOSS, "distill.kd": _PAPER_KD_LOSS}.get(section)
        value = getattr(loss, name) if loss else _get_nested(own, key)
        if any(found.get(other) not in values for other, values in each.conditions.items()):
            continue
        inside = value in each.choices if each.choices else (each.low or 0) <= (value or 0) <= (each.high or 0)
        if not inside:
            return {}
        found[key] = value
    return found


def build_trial_config(config: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """The experiment that a trial is: the paper's own loss at the paper's settings.

    Raises:
        ConfigError: the settings do not go together.
    """
    made = with_settings(config, dict(settings), "tune.space")
    if settings == paper_settings(config):
        losses = {"mtkd": PAPER_LOSS, "kd": _PAPER_KD_LOSS}
        same = {
            name: loss
            for name, loss in losses.items()
            if any(key.startswith(f"distill.{name}.") for key in config.tune.space)
        }
        made = made.model_copy(update={"distill": made.distill.model_copy(update=same)})
    return made


def _initial_trials(config: Experiment) -> list[Settings]:
    """Trials that are not left to the sampler: the paper's settings, and all of a grid."""
    paper, space = paper_settings(config), config.tune.space
    first = [paper] if paper else []
    if config.tune.sampler != "grid":
        return first
    values = itertools.product(*(each.choices for each in space.values()))
    grid = [dict(zip(space, each, strict=True)) for each in values]
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
    """Refuse settings that do not go together before anything runs: each choice is tried with the others at their own.

    Raises:
        ConfigError: a choice is refused.
    """
    for key, each in config.tune.space.items():
        for value in each.choices:
            context = {other: values[0] for other, values in each.conditions.items()}
            try:
                with_settings(config, {**context, key: value}, f"tune.space.{key}")
            except ConfigError as error:
                raise ConfigError(f"{error} (one of its choices, with the rest as in the experiment)") from None
