"""Define the configuration section `tune`: the search space, the sampler, the scheduler and the objective."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lakd_ray.config.base import Section

_SEARCHABLE_PREFIXES = ("student.", "distill.kd.", "distill.mtkd.")
_FIXED_KEYS = ("student.optim.epochs", "student.model.pretrained")


class Dimension(Section):
    """The search range of one setting: an interval or a list of choices."""

    low: float | None = None
    """Smallest value of the interval."""
    high: float | None = None
    """Largest value of the interval."""
    log: bool = False
    """Sample on a logarithmic scale."""
    integer: bool = False
    """Sample integers only."""
    choices: tuple[Any, ...] = ()
    """List of values, in place of an interval."""
    conditions: dict[str, tuple[Any, ...]] = Field({})
    """Sample only if these settings of the search, listed before this one, have one of these values."""

    @model_validator(mode="after")
    def _validate_dimension(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None or len(self.choices) < 2 or self.log or self.integer:
                raise ValueError("expected either `low` and `high`, or two or more `choices`")
            return self
        if self.low is None or self.high is None:
            raise ValueError("expected `low` and `high`, or `choices`")
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"expected low < high, and low > 0 with log; found low={self.low}, high={self.high}")
        if self.integer and (self.low != int(self.low) or self.high != int(self.high)):
            raise ValueError(f"expected integers; found low={self.low}, high={self.high}")
        return self


class SettingsSelection(Section):
    """A search that selected settings by the results on dev speakers; `tune` writes it into best.yaml."""

    experiment: str
    """Name of the experiment of the search."""
    fold: int
    """Its test fold."""
    speakers: tuple[str, ...]
    """Its dev speakers, `corpus:speaker`."""


class ReevaluationConfig(Section):
    """Repetition of the best trials with other seeds, so that the winner is not the luckiest trial."""

    top_k: int = Field(3, ge=1)
    """Number of trials to repeat."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds of the students, at least three for a verdict; teachers stay those of the experiment's own seed."""

    @model_validator(mode="after")
    def _validate_seeds(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"expected different seeds in `tune.reevaluate.seeds`; found {list(self.seeds)}")
        return self


def _default_space() -> dict[str, Dimension]:
    return {
        "distill.mtkd.temperature": Dimension(low=1.0, high=10.0),
        "distill.mtkd.lam": Dimension(low=0.02, high=0.9, log=True),
        "distill.mtkd.weighting_temperature": Dimension(low=0.05, high=2.0, log=True),
    }


class TuningConfig(Section):
    """The hyperparameter search for the student; it uses dev, never test."""

    trials: int = Field(16, ge=1)
    """Number of trials. A larger number makes the same command extend a finished search."""
    max_concurrent_trials: int = Field(2, ge=1)
    """Maximum number of trials that run at the same time."""
    workers_per_trial: int = Field(1, ge=1)
    """Data-parallel workers of a trial. One: a process that is reused; more: a worker group for each trial."""
    epochs: int | None = Field(None, ge=1)
    """Epochs of a trial that is not stopped early; null: student.optim.epochs."""
    paradigm: Literal["ft", "kd", "mtkd"] = "mtkd"
    """Paradigm of the multilingual student to tune."""
    space: dict[str, Dimension] = Field(default_factory=_default_space)
    """Search space: dotted keys of `student`, `distill.kd` and `distill.mtkd`, with their ranges."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Sampler of settings; `grid` enumerates all `choices`."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """Early stopping of trials: asha continues the best at each rung, median stops those below the median."""
    grace_epochs: int = Field(2, ge=1)
    """Epochs before a trial can be stopped."""
    reduction_factor: int = Field(3, ge=2)
    """asha: factor by which the number of trials falls at each rung."""
    objective: Literal["mean", "worst"] = "mean"
    """UR on dev to maximize: the mean over languages, which also selects epochs and students and is the headline of
    reports, or that of the worst language.
    """
    second_objective: Literal["size", "latency"] | None = None
    """Second objective, for a Pareto front: the student's number of parameters, or its latency on a clip of 5 s.
    Early stopping is then off."""
    study_storage: str | None = None
    """Database URL of the Optuna study, reachable from the driver; its password is read from LAKD_STUDY_PASSWORD. null:
    a SQLite file in the stage's folder."""
    reevaluate: ReevaluationConfig | None = None
    """Repetition of the best trials with other seeds before the winner is chosen; null: none."""

    @model_validator(mode="after")
    def _validate_search(self) -> Self:
        if not self.space:
            raise ValueError("`tune.space` is empty: name a setting to vary")
        names = list(self.space)
        for number, (key, dimension) in enumerate(self.space.items()):
            if not key.startswith(_SEARCHABLE_PREFIXES) or key in _FIXED_KEYS:
                raise ValueError(
                    f"`tune.space` has {key}: expected keys below student, distill.kd or distill.mtkd, except "
                    + " and ".join(_FIXED_KEYS)
                )
            if unknown := [other for other in dimension.conditions if other not in names[:number]]:
                raise ValueError(
                    f"`tune.space.{key}.conditions` names {', '.join(unknown)}: expected settings listed before it"
                )
        if self.sampler == "grid" and any(not item.choices or item.conditions for item in self.space.values()):
            raise ValueError(
                "sampler grid enumerates `choices` without `conditions`: list choices for every setting, or set "
                "tune.sampler: tpe"
            )
        return self
